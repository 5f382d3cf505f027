// What each page shows, made of the newest facts.

import { button, change, clearPersistence, failed, operate, reload, weigh } from "./actions.js";
import { ask, get, may } from "./api.js";
import { badge, diff, h, rate, size, span, spark, table } from "./dom.js";

const path = encodeURIComponent;

// ---------------------------------------------------------------- overview

export function overview(live, history) {
  const services = live.services;
  const total = (key) => services.reduce((sum, one) => sum + one[key], 0);
  const perSecond = (key) => services.reduce((sum, one) => sum + one.rates[key], 0);
  const bad = services.filter((one) => one.tone === "bad").length;
  const unwell = services.filter((one) => one.tone === "warning").length;
  const says = bad ? `${bad} of ${services.length} services refuse sessions`
    : unwell ? `${unwell} of ${services.length} services need a look` : `all ${services.length} services are well`;
  return h("div", {},
    h("h1", {}, "Overview"),
    h("section", { class: "numbers", "aria-label": "Together" },
      h("div", { class: `number ${bad ? "bad" : unwell ? "warning" : "good"}` }, h("b", {}, says), h("span", {}, `${live.workers} workers, up ${span(live.uptime_s)}`)),
      number(total("sessions"), "open sessions"),
      number(rate(perSecond("total")), "new a second"),
      number(rate(perSecond("refused")), "refused a second"),
      number(`${size(perSecond("bytes_in"))}/s`, "to the servers"),
      number(`${size(perSecond("bytes_out"))}/s`, "to clients")),
    attention(live),
    h("div", { class: "cards" }, services.map((one) => card(one, history[one.name]))),
    h("h2", {}, "Lately"), eventList(live.events.slice(-8)));
}

function number(value, words) {
  return h("div", { class: "number" }, h("b", {}, value), h("span", {}, words));
}

function attention(live) {
  const lines = [...live.troubles, ...live.warnings];
  return lines.length ? h("details", { class: "attention" },
    h("summary", {}, `${lines.length} ${lines.length === 1 ? "warning" : "warnings"}`),
    h("ul", {}, lines.map((line) => h("li", {}, line)))) : null;
}

function card(one, history) {
  const series = history || { sessions: [], total: [], failed: [] };
  return h("a", { class: `card ${one.tone}`, href: `#/service/${path(one.name)}` },
    h("h2", {}, one.name, " ", badge(one.tone, one.says)),
    h("p", { class: "quiet" }, `${one.mode} on ${one.listen.join(", ")}`),
    h("div", { class: "sparks" },
      chart(series.sessions, "sessions", one.sessions),
      chart(series.total, "new/s", rate(one.rates.total)),
      chart(series.failed, "failed/s", rate(one.rates.failed))));
}

function chart(numbers, words, now) {
  return h("div", {}, spark(numbers || [], `${words} lately`), h("span", {}, h("b", {}, now), ` ${words}`));
}

// ---------------------------------------------------------------- one service

export function service(live, name, history, asked) {
  const one = live.service;
  if (!one || one.name !== name) {
    const there = live.services.some((other) => other.name === name);
    return h("div", {}, h("h1", {}, name), h("p", {}, there ? "…" : "There is no service of this name."));
  }
  return h("div", {},
    h("h1", {}, one.name, " ", badge(one.tone, one.says)),
    h("p", { class: "quiet" }, `${one.mode} on ${one.listen.join(", ")}${one.profile ? `, profile ${one.profile}` : ""}`),
    one.imbalance_words ? h("p", { class: "attention" }, one.imbalance_words) : null,
    h("p", { class: "quiet" }, "The last 30 minutes:"), h("div", { class: "wide sparks" }, ["sessions", "total", "refused", "failed", "bytes_out"].map((key) =>
      chart((history || {})[key], { sessions: "sessions", total: "new/s", refused: "refused/s", failed: "failed/s", bytes_out: "bytes/s out" }[key],
        key === "sessions" ? one.sessions : latest((history || {})[key])))),
    one.pools.map((pool) => poolBlock(one, pool)),
    wayForm(one),
    h("h2", {}, "Sessions"), asked.sessions ? sessionTable(asked.sessions) : h("p", { class: "quiet" }, "…"),
    persistGroups(one).map((group) => persistence(group, asked.persistence?.[group])));
}

function latest(numbers) {
  const known = (numbers || []).filter((n) => n !== null);
  return known.length ? rate(known.at(-1)) : "0";
}

export function persistGroups(one) {
  return [...new Set(one.pools.map((pool) => pool.persist?.group).filter(Boolean))];
}

function poolBlock(one, pool) {
  const title = pool.route ? `Route ${pool.route}${pool.hosts.length ? ` (${pool.hosts.join(", ")})` : ""}` : "Real servers";
  const persist = pool.persist ? `, persistence by ${pool.persist.by} for ${span(pool.persist.timeout_s)}` : "";
  return h("section", {}, h("h2", {}, title), h("p", { class: "quiet" }, `${pool.schedule}${persist}`),
    table(["real server", "state", "sessions >", "weight >", "failed >", "last check", "in >", "out >", ""],
      pool.real_servers.map((server) => ({ tone: server.tone, cells: [
        h("span", {}, h("b", {}, server.name), " ", h("span", { class: "quiet" }, server.endpoint)),
        h("span", {}, badge(server.tone, server.state), ramp(server)),
        server.sessions, server.weight, server.connect_failed,
        h("span", { title: server.check?.reason || null }, server.check_words),
        size(server.bytes_in), size(server.bytes_out), actions(one, pool, server)] })), "no real server"));
}

function ramp(server) {
  return server.ramp_percent < 100
    ? h("progress", { max: 100, value: server.ramp_percent, "aria-label": `ramp ${server.ramp_percent} %` }) : null;
}

function actions(one, pool, server) {
  const act = (word) => button("operate", word, () => operate(word, server.name, one.name), `${word} ${server.name}`);
  return h("div", { class: "buttons" },
    server.admin === "enabled" ? [act("drain"), act("disable")] : act("enable"),
    pool.route ? null : button("admin", "weight", () => weigh(one.name, server.name, server.configured_weight), `weight of ${server.name}`));
}

function wayForm(one) {
  const submit = async (event) => {
    event.preventDefault();
    const shown = event.currentTarget.parentNode.querySelector(".ways");
    const query = `client=${path(event.currentTarget.elements.client.value.trim())}&service=${path(one.name)}`;
    try {
      const { ways } = await get(`/explain?${query}`);
      shown.replaceChildren(...ways.map((way) => h("figure", {},
        h("img", { class: "way", src: `/api/v1/explain.svg?${query}&real_server=${path(way.real_server)}`, alt: `the way to ${way.server}` }),
        h("figcaption", {}, h("pre", { tabindex: 0 }, way.text)))));
    } catch (error) {
      shown.replaceChildren(failed(error));
    }
  };
  return h("details", {}, h("summary", {}, "Which way does a client's connection go?"),
    h("form", { class: "field", onsubmit: submit }, h("label", { for: "client" }, "Address of the client"),
      h("input", { id: "client", name: "client", placeholder: "192.0.2.10", autocomplete: "off" }), h("button", {}, "Show the way")),
    h("div", { class: "ways", "aria-live": "polite" }));
}

function sessionTable(found) {
  const rows = found.sessions.map((s) => [s.client, s.server, s.why, span(s.age_s), span(s.idle_s), size(s.bytes_in), size(s.bytes_out)]);
  return h("div", {}, table(["client", "real server", "why there", "age >", "idle >", "in >", "out >"], rows, "no open session"),
    found.more ? h("p", { class: "quiet" }, `and ${found.more} more`) : null);
}

function persistence(name, found) {
  const rows = (found?.entries || []).map((e) => [e.key, e.real_server, span(e.expires_in_s)]);
  return h("section", {}, h("h2", {}, `Returning clients of group ${name}`),
    found ? table(["client", "real server", "forgotten in >"], rows, "nobody is remembered") : h("p", { class: "quiet" }, "…"),
    found?.more ? h("p", { class: "quiet" }, `and ${found.more} more`) : null,
    rows.length ? button("operate", "Forget all of them", () => clearPersistence(name)) : null);
}

// ---------------------------------------------------------------- real servers, everywhere

export function realServers(facts) {
  return h("div", {}, h("h1", {}, "Real servers"), facts.real_servers.map((one) => h("section", { class: `card ${one.tone}` },
    h("h2", {}, one.name, " ", badge(one.tone, `${one.sessions} sessions in ${one.services.length} places`)),
    h("ul", {}, one.services.map((place) => h("li", {},
      h("a", { href: `#/service/${path(place.service)}` }, place.route ? `${place.service}/${place.route}` : place.service), ` ${place.endpoint}: ${place.state}`))),
    h("div", { class: "buttons" }, ["drain", "disable", "enable"].filter((word) => (word === "enable") !== (one.admin === "enabled"))
      .map((word) => button("operate", `${word} everywhere`, () => operate(word, one.name, ""), `${word} ${one.name} everywhere`))))));
}

// ---------------------------------------------------------------- events, audit

export function eventList(events) {
  const rows = [...events].reverse().map((e) => ({ tone: { error: "bad", warning: "warning" }[e.level] || null,
    cells: [e.at.replace("T", " ").replace("Z", ""), e.level, e.text] }));
  return table(["when (UTC)", "level", "what"], rows, "nothing yet");
}

export function events(facts) {
  return h("div", {}, h("h1", {}, "Events"), eventList(facts.events));
}

export function audit(facts) {
  return h("div", {}, h("h1", {}, "Who changed what"), table(["when (UTC)", "who", "from", "what", "outcome"],
    [...facts.entries].reverse().map((e) => [e.at.replace("T", " ").replace("Z", ""), `${e.who} (${e.role})`, e.from, e.what, e.outcome]), "nothing was changed"));
}

// ---------------------------------------------------------------- configuration

export function configuration({ config, history }, redraw) {
  const text = h("textarea", { id: "text", rows: 28, spellcheck: "false", readonly: !may("admin"), "aria-label": "Configuration file" });
  text.value = config.text;
  const outcome = h("div", { "aria-live": "polite" });
  const check = async () => {
    try {
      const found = await ask("POST", "/config/check", { text: text.value });
      outcome.replaceChildren(h("p", { class: "fine" }, "No problem."), h("ul", {}, found.warnings.map((w) => h("li", {}, w))));
    } catch (error) {
      outcome.replaceChildren(failed(error));
    }
  };
  return h("div", {}, h("h1", {}, "Configuration"), h("p", { class: "quiet" }, config.path),
    config.pending ? h("p", { class: "attention" }, "The file says something else than what runs: it was changed by hand.", " ",
      button("operate", "Reload", reload)) : null,
    text,
    h("div", { class: "buttons" }, h("button", { onclick: check }, "Check"),
      button("admin", "Look at the change and apply", () => change("Apply this configuration?", "PUT", "/config", { text: text.value }, config.etag))),
    outcome,
    h("h2", {}, "History"), history.complaint ? h("p", { class: "attention" }, history.complaint) : null,
    history.history.map((one, place) => historyLine(one, place, config.etag, redraw)));
}

function historyLine(one, place, etag) {
  const body = h("div", {});
  const opened = async (event) => {
    if (!event.currentTarget.open || body.hasChildNodes()) return;
    try {
      const found = await get(`/config/history/${one.number}`);
      body.replaceChildren(h("h3", {}, "What it changed"), diff(found.diff), place ? h("h3", {}, "What going back would change") : "",
        place ? diff(found.diff_to_now) : "");
      const back = place ? button("admin", "Go back to this configuration", () =>
        change(`Go back to number ${one.number}?`, "POST", `/config/history/${one.number}/rollback`, undefined, etag)) : null;
      if (back) body.append(back);
    } catch (error) {
      body.replaceChildren(failed(error));
    }
  };
  return h("details", { ontoggle: opened }, h("summary", {}, `${one.number} · ${one.at.replace("T", " ").replace("Z", "")} · ${one.who} · ${one.what}${place ? "" : " · runs now"}`), body);
}

// ---------------------------------------------------------------- profiles

export function profiles(facts) {
  return h("div", {}, h("h1", {}, "Profiles"), h("div", { class: "cards" }, facts.profiles.map((one) =>
    h("a", { class: "card", href: `#/profile/${path(one.profile)}` }, h("h2", {}, one.title), h("p", {}, one.description),
      h("p", { class: "quiet" }, one.services.join(", "))))));
}

export function profile({ one, config }) {
  const names = Object.keys(one.parameters);
  const inputs = {};
  const field = (id, words, hint, required) => {
    inputs[id] = h("input", { id, placeholder: hint || "", required: Boolean(required), autocomplete: "off" });
    return h("div", { class: "field" }, h("label", { for: id }, words, required ? " (needed)" : ""), inputs[id]);
  };
  const submit = (event) => {
    event.preventDefault();
    const value = (id) => inputs[id].value.trim();
    const settings = { vip: value("vip"), real_servers: value("servers").split(/[\s,]+/).filter(Boolean) };
    if (value("parts")) settings.services = value("parts").split(/[\s,]+/).filter(Boolean);
    for (const name of names) if (value(`p-${name}`)) settings[name] = typed(one.parameters[name].type, value(`p-${name}`));
    change(`Make the services of ${one.profile}?`, "POST", `/profiles/${path(one.profile)}/apply`, { name: value("name"), settings }, config.etag);
  };
  return h("div", {}, h("h1", {}, one.title), h("p", {}, one.description),
    may("admin") ? h("form", { onsubmit: submit }, h("h2", {}, "Fill in"),
      field("name", "Name in the file", "mail", true), field("vip", "Address that clients connect to", "10.0.1.100", true),
      field("servers", "Real servers, by name", "ex1, ex2", true), field("parts", `Only these services (of ${one.services.join(", ")})`, "all usual ones"),
      names.map((name) => field(`p-${name}`, `${name}: ${one.parameters[name].description}`,
        one.parameters[name].default ?? one.parameters[name].example ?? "", one.parameters[name].required)),
      h("div", { class: "buttons" }, h("button", { class: "main" }, "Look at the resulting YAML"))) : null,
    h("h2", {}, "What the servers and DNS need"), one.checklist.map((item) => h("details", {}, h("summary", {}, item.title),
      h("p", {}, item.why), item.commands.map((command) => h("pre", { tabindex: 0 }, command)))),
    h("h2", {}, "As it is written"), h("pre", { tabindex: 0 }, one.text));
}

function typed(type, text) {
  return (type === "port" || type === "seconds") && /^[0-9]+(\.[0-9]+)?$/.test(text) ? Number(text) : text;
}
