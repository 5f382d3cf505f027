// Certificates: what clients are shown, what waits for an authority, and how both are changed.

import { announce, button, failed } from "./actions.js";
import { ask, get, may } from "./api.js";
import { badge, diff, h } from "./dom.js";

const path = (name) => `/certificates/${encodeURIComponent(name)}`;
const KEYS = [["rsa-2048", "RSA, 2048 bits: every client"], ["rsa-3072", "RSA, 3072 bits"], ["ecdsa-p256", "ECDSA P-256: fast, not for the oldest clients"]];

export function certificates({ certificates: found, waiting }) {
  const sorted = [...found].sort((a, b) => a.days_left - b.days_left);
  return h("div", {}, h("h1", {}, "Certificates"),
    may("admin") ? h("div", { class: "buttons" },
      h("button", { class: "main", onclick: () => upload("") }, "Add a certificate"),
      h("button", { onclick: () => request("", []) }, "New signing request"),
      h("button", { onclick: () => selfSigned() }, "Self-signed, for tests")) : null,
    waiting.length ? h("h2", {}, "Keys that wait for their certificate") : null,
    waiting.map(waits),
    h("h2", {}, "Listed in the configuration"),
    sorted.length ? sorted.map(card) : h("p", { class: "quiet" }, "The configuration lists no certificate."));
}

// ---------------------------------------------------------------- what there is

function tone(days) {
  return days < 7 ? "bad" : days < 30 ? "warning" : "good";
}

function left(days) {
  if (days < 0) return "expired";
  return days === 1 ? "1 day left" : `${days} days left`;
}

function card(one) {
  const wrong = one.extended_protection.some((found) => found.binding === "MISMATCH");
  return h("section", { class: `card ${wrong ? "bad" : tone(one.days_left)}` },
    h("h2", {}, one.name, " ", badge(tone(one.days_left), left(one.days_left))),
    facts(one),
    one.warnings.length ? h("ul", { class: "attention" }, one.warnings.map((words) => h("li", {}, words))) : null,
    h("div", { class: "buttons" },
      button("admin", "Renew", () => upload(one.name), `renew ${one.name}`),
      button("admin", "Signing request", () => request(one.name, one.names), `signing request for ${one.name}`),
      one.shown_by.length || one.door ? null : button("admin", "Remove", () => remove(one.name), `remove ${one.name}`)));
}

function facts(one) {
  const users = [...(one.shown_by || []).map(shown), ...(one.door ? [h("div", {}, "this page and the API")] : [])];
  const rows = [["for", one.names.join(", ") || "no name"], ["issued by", one.issuer], ["key", one.key],
    ["valid", `${one.not_before.slice(0, 10)} to ${one.not_after.slice(0, 10)}`]];
  if (one.shown_by) rows.push(["shown by", users.length ? users : "nobody"]);
  if (one.extended_protection?.length) rows.push(["Extended Protection", one.extended_protection.map(protection)]);
  return h("dl", { class: "facts" }, rows.map(([word, value]) => [h("dt", {}, word), h("dd", {}, value)]));
}

function shown({ service, default: usual, sni }) {
  const whom = usual ? " to everybody who asks for no other" : sni.length ? ` to those who ask for ${sni.join(", ")}` : ": never chosen";
  return h("div", {}, h("a", { href: `#/service/${encodeURIComponent(service)}` }, service), whom);
}

function protection({ service, real_server: server, binding, text }) {
  const tones = { match: "good", MISMATCH: "bad" };
  return h("div", {}, `${service} `, badge(tones[binding] || "warning", `${server} ${binding}`),
    binding === "match" ? "" : ` ${text}`);
}

function waits(one) {
  const show = async () => {
    try {
      showRequest(await get(`${path(one.name)}/request`));
    } catch (error) {
      announce("The request cannot be shown", failed(error), "", null);
    }
  };
  return h("section", { class: "card warning" }, h("h2", {}, one.name), h("p", {}, `a key waits for the certificate of ${one.names.join(", ")}`),
    may("admin") ? h("div", { class: "buttons" },
      h("button", { class: "main", onclick: () => upload(one.name) }, "The certificate has come"),
      h("button", { onclick: show }, "Show the request"),
      h("button", { onclick: () => giveUp(one.name) }, "Give up")) : null);
}

// ---------------------------------------------------------------- what can be done

function field(id, words, properties) {
  const input = h("input", { id, autocomplete: "off", ...properties });
  return { input, line: h("div", { class: "field" }, h("label", { for: id }, words), input) };
}

/** A file as the API wants it: text, or base64 of what is none. */
async function read(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = new TextDecoder().decode(bytes);
  if (text.includes("-----BEGIN ")) return { text };
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return { base64: btoa(binary) };
}

function upload(name) {
  const named = field("certificate-name", "Name in the configuration", { placeholder: "mail", value: name || null, required: true });
  const file = field("certificate-file", "Certificate with its issuers: .pem, .crt, .cer, .p7b, or .pfx with its key", { type: "file" });
  const key = field("certificate-key", "Key, if it is in a file of its own (PEM)", { type: "file" });
  const password = field("certificate-password", "Password of the key or the PFX, if there is one", { type: "password" });
  announce(name ? `Renew ${name}` : "Add a certificate", h("div", {}, name ? null : named.line, file.line, key.line, password.line,
    h("p", { class: "quiet" }, "A key that waits here, or the key in use, is joined by itself. No key ever comes out again.")),
  "Look at it", async () => {
    if (!file.input.files.length) throw new Error("Choose the file with the certificate.");
    const called = name || named.input.value.trim();
    const sent = await read(file.input.files[0]);
    const body = sent.text === undefined ? { pfx: sent.base64 } : { pem: sent.text };
    if (key.input.files.length) body.key = (await read(key.input.files[0])).text || "";
    if (password.input.value) body.password = password.input.value;
    return look(called, "PUT", path(called), body, name ? "" : "&only=new");
  });
}

/** Show what a certificate would be and change, and do it when the person agrees. */
async function look(name, method, where, body, more) {
  const looked = await ask(method, `${where}?dry_run=true${more}`, body);
  announce(`Show this certificate as ${name}?`, h("div", {}, facts(looked.certificate),
    looked.warnings.length ? h("ul", { class: "attention" }, looked.warnings.map((words) => h("li", {}, words))) : null,
    looked.diff ? diff(looked.diff) : h("p", {}, "The configuration file stays as it is; sessions stay, and the next handshake shows it.")),
  "Apply", async () => { await ask(method, `${where}?dry_run=false${more}`, body); location.reload(); return {}; });
  return null;
}

function keyFields(name, names) {
  const named = field("request-name", "Name in the configuration", { placeholder: "mail", value: name || null, required: true });
  const hosts = field("request-hosts", "For which names and addresses, with spaces between", { placeholder: "mail.example.com autodiscover.example.com", value: names.join(" ") || null });
  const kind = h("select", { id: "request-kind" }, KEYS.map(([value, words]) => h("option", { value }, words)));
  const lines = [name ? null : named.line, hosts.line, h("div", { class: "field" }, h("label", { for: "request-kind" }, "Key"), kind)];
  const body = () => ({ names: hosts.input.value.split(/[\s,]+/).filter(Boolean), key: kind.value });
  return { lines, body, called: () => name || named.input.value.trim() };
}

function request(name, names) {
  const { lines, body, called } = keyFields(name, names);
  announce(name ? `Signing request for ${name}` : "New signing request", h("div", {}, lines,
    h("p", { class: "quiet" }, "The key is made on the balancer and stays there. What is shown now goes on being shown until the certificate has come.")),
  "Make it", async () => { showRequest(await ask("POST", `${path(called())}/request`, body())); return null; });
}

function showRequest({ name, csr }) {
  const text = h("textarea", { id: "csr", rows: 14, readonly: true, spellcheck: "false", "aria-label": "Signing request" });
  text.value = csr;
  announce(`Send this to your authority for ${name}`, text, "I have it", async () => { location.reload(); return {}; });
  text.select();
}

function selfSigned() {
  const { lines, body, called } = keyFields("", []);
  const days = field("request-days", "Days it is good for", { type: "number", min: 1, max: 398, value: 90 });
  announce("A certificate that nobody vouches for", h("div", {}, lines, days.line,
    h("p", { class: "quiet" }, "For tests: clients warn of it or refuse it.")), "Make it",
  async () => {
    const where = `${path(called())}/self-signed`;
    await ask("POST", `${where}?only=new`, { ...body(), days: Number(days.input.value) });
    location.reload();
    return {};
  });
}

async function remove(name) {
  try {
    const looked = await ask("DELETE", `${path(name)}?dry_run=true`);
    announce(`Remove ${name}?`, h("div", {}, h("p", { class: "plan" }, "its key is destroyed, and cannot be brought back"), diff(looked.diff)),
      "Remove", async () => { await ask("DELETE", path(name)); location.reload(); return {}; });
  } catch (error) {
    announce("It cannot be removed", failed(error), "", null);
  }
}

function giveUp(name) {
  announce(`Give up the key that waits for ${name}?`, h("p", { class: "plan" }, "it is destroyed; a certificate for its request is of no use any more"),
    "Give up", async () => { await ask("DELETE", `${path(name)}/request`); location.reload(); return {}; });
}
