// What can be done: every action first says what it will do, in a dialog, and is done only then.

import { ask, get, may } from "./api.js";
import { diff, h } from "./dom.js";

const dialog = document.getElementById("dialog");

function close() {
  dialog.close();
}

export function failed(error) {
  return h("div", { class: "failed", role: "alert" },
    h("p", {}, h("strong", {}, error.message), error.remedy ? ` ${error.remedy}` : ""),
    error.problems?.length ? h("ul", {}, error.problems.map((problem) => h("li", {}, problem))) : null);
}

/** Show what will happen; `act` does it when the person agrees. */
export function announce(title, content, verb, act) {
  const outcome = h("div", { "aria-live": "polite" });
  const agree = h("button", { class: "main", onclick: async () => {
    agree.disabled = true;
    try {
      const told = await act();
      if (!told) return null; // it has shown something else in our place
      const warnings = told.warnings || [];
      if (!warnings.length) return dialog.close();
      outcome.replaceChildren(h("p", {}, "Done."), h("ul", {}, warnings.map((w) => h("li", {}, w))));
      agree.hidden = true;
    } catch (error) {
      outcome.replaceChildren(failed(error));
      agree.disabled = false;
    }
    return null;
  } }, verb);
  dialog.replaceChildren(h("h2", { id: "dialog-title" }, title), content, outcome,
    h("div", { class: "buttons" }, h("button", { onclick: close }, "Close"), act ? agree : null));
  if (!dialog.open) dialog.showModal();
  agree.focus();
}

export async function operate(action, realServer, service) {
  try {
    const where = service ? `&service=${encodeURIComponent(service)}` : "";
    const plan = await get(`/real-servers/${encodeURIComponent(realServer)}/plan?action=${action}${where}`);
    const content = [h("p", { class: "plan" }, plan.says),
      plan.warnings.length ? h("ul", { class: "failed" }, plan.warnings.map((w) => h("li", {}, w))) : null];
    announce(`${action[0].toUpperCase()}${action.slice(1)} ${realServer}?`, h("div", {}, ...content.filter(Boolean)), action,
      () => ask("POST", `/real-servers/${encodeURIComponent(realServer)}/${action}`, { service: service || "" }));
  } catch (error) {
    announce("This cannot be done", failed(error), "", null);
  }
}

/** A change of the configuration: its diff first (`dry_run`), then the same for good. */
export async function change(title, method, path, body, etag) {
  const send = (query) => ask(method, `${path}${query}`, body, { "If-Match": etag });
  try {
    const looked = await send("?dry_run=true");
    const warnings = looked.warnings.length ? h("ul", {}, looked.warnings.map((w) => h("li", {}, w))) : null;
    announce(title, h("div", {}, h("p", {}, "This changes the file and applies it; sessions stay."), diff(looked.diff), warnings),
      "Apply", async () => { await send(""); location.reload(); return {}; });
  } catch (error) {
    announce("This cannot be applied", failed(error), "", null);
  }
}

export async function takeOut(realServer, until) {
  const way = `/real-servers/${encodeURIComponent(realServer)}`;
  try {
    const plan = await get(`${way}/plan?action=maintenance`);
    const back = until ? `it comes back at ${until}, through its checks and the ramp` : "it stays out until you bring it back";
    const force = h("input", { id: "force", type: "checkbox" });
    const content = h("div", {}, h("p", { class: "plan" }, plan.says), h("p", {}, back),
      plan.warnings.length ? [h("ul", { class: "failed" }, plan.warnings.map((w) => h("li", {}, w))),
        h("p", { class: "check" }, force, h("label", { for: "force" }, "do it all the same"))] : null);
    announce(`Take ${realServer} out?`, content, "take out", async () => {
      await ask("POST", `${way}/maintenance`, { until, force: force.checked });
      window.dispatchEvent(new HashChangeEvent("hashchange"));
      return {};
    });
  } catch (error) {
    announce("This cannot be done", failed(error), "", null);
  }
}

export function bringBack(realServer) {
  announce(`Bring ${realServer} back?`, h("p", { class: "plan" }, `enable ${realServer} wherever it was enabled before: through its checks, then the ramp`), "bring back",
    async () => {
      const told = await ask("POST", `/real-servers/${encodeURIComponent(realServer)}/maintenance/stop`);
      window.dispatchEvent(new HashChangeEvent("hashchange"));
      return told;
    });
}

export function weigh(service, realServer, weight) {
  const input = h("input", { id: "weight", type: "number", min: "0.01", max: "1000", step: "any", value: weight });
  announce(`Weight of ${realServer} in ${service}`,
    h("div", {}, h("label", { for: "weight" }, "Its share of new sessions beside the others"), input), "Look at the change",
    async () => {
      const { etag } = await get("/config");
      const path = `/config/services/${encodeURIComponent(service)}/real-servers/${encodeURIComponent(realServer)}/weight`;
      await change(`Weight ${input.value} for ${realServer} in ${service}`, "PUT", path, { weight: Number(input.value) }, etag);
      return null;
    });
}

export function clearPersistence(group) {
  announce("Forget clients?", h("p", { class: "plan" },
    `forget every client of group ${group}: their next session is balanced anew; open sessions stay`), "Forget",
  () => ask("POST", "/persistence/clear", { group }));
}

export function reload() {
  announce("Apply the file?", h("p", { class: "plan" }, "read the configuration file again and run what it says; sessions stay, and a wrong file changes nothing"),
    "Reload", async () => { const told = await ask("POST", "/reload"); location.reload(); return told; });
}

export function button(role, text, act, label) {
  return may(role) ? h("button", { onclick: act, "aria-label": label || null }, text) : null;
}
