// What each page shows, made of the newest facts.

import { button, change, clearPersistence, failed, operate, reload, weigh } from "./actions.js";
import { ask, get, may } from "./api.js";
import { badge, bar, diff, h, rate, size, span, spark, table, thinned, when } from "./dom.js";

const path = encodeURIComponent;

// ---------------------------------------------------------------- overview

let sought = "";

export function overview(live, history, redraw) {
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
      h("div", { class: `number tile ${bad ? "bad" : unwell ? "warning" : "good"}` }, h("b", {}, says), h("span", {}, `${live.workers} workers, up ${span(live.uptime_s)}`)),
      number(total("sessions"), "open sessions"),
      number(rate(perSecond("total")), "new a second"),
      number(rate(perSecond("refused") + perSecond("failed")), "errors a second"),
      number(`${size(perSecond("bytes_in"))}/s`, "to the servers"),
      number(`${size(perSecond("bytes_out"))}/s`, "to clients")),
    attention(live),
    live.maintenance.map((line) => h("p", { class: "notice" }, h("a", { href: "#/maintenance" }, "Maintenance"), ` ${line}`)),
    serviceTable(services, history, redraw),
    h("h2", {}, "Lately"), eventList(live.events.slice(-8)));
}

function number(value, words) {
  return h("div", { class: "number tile" }, h("b", {}, value), h("span", {}, words));
}

function attention(live) {
  const lines = [...live.troubles, ...live.warnings];
  return lines.length ? h("details", { class: "attention", open: lines.length < 3 },
    h("summary", {}, `${lines.length} ${lines.length === 1 ? "warning" : "warnings"}`),
    h("ul", {}, lines.map((line) => h("li", {}, line)))) : null;
}

/** Those that are not well first: nobody should have to look for them. */
function serviceTable(services, history, redraw) {
  const rank = { bad: 0, warning: 1 };
  const shown = services.filter((one) => one.name.includes(sought) || one.listen.some((place) => place.includes(sought)))
    .sort((a, b) => (rank[a.tone] ?? 2) - (rank[b.tone] ?? 2));
  const finder = services.length > 8 ? h("input", { id: "sought", type: "search", placeholder: "Find a service by name or address",
    "aria-label": "Find a service", oninput: (event) => { sought = event.currentTarget.value.trim(); redraw(); } }) : null;
  return h("section", { class: "services" }, h("h2", {}, "Services"), finder,
    table(["service", "real servers", "sessions", "new/s", "errors/s", "in >", "out >"], shown.map((one) => serviceRow(one, history[one.name])),
      services.length ? "no service has such a name or address" : "No service is configured. A profile is the quickest way to one."));
}

function serviceRow(one, history) {
  const series = history || { sessions: [], total: [], errors: [] };
  return { tone: one.tone, cells: [
    h("div", { class: "name" }, h("a", { href: `#/service/${path(one.name)}` }, one.name), " ", badge(one.tone, one.says),
      h("div", { class: "quiet" }, `${one.mode} on ${one.listen.join(", ")}`)),
    chips(one.real_servers),
    chart(series.sessions, "sessions", one.sessions),
    chart(series.total, "new a second", rate(one.rates.total)),
    chart(series.errors, "errors a second", rate(one.rates.refused + one.rates.failed), "errors"),
    `${size(one.rates.bytes_in)}/s`, `${size(one.rates.bytes_out)}/s`] };
}

const MOST_CHIPS = 6;

/** Of many real servers those that are not well, and how many are. */
function chips(servers) {
  const many = servers.length > MOST_CHIPS;
  const well = (server) => server.tone === "good" || server.state === "not checked";
  const shown = many ? servers.filter((server) => !well(server)) : servers;
  return h("div", { class: "chips" },
    many && servers.length > shown.length ? h("span", { class: "chip good" }, `${servers.length - shown.length} in service`) : null,
    shown.slice(0, MOST_CHIPS).map((server) => h("span", { class: `chip ${server.tone}`, title: `${server.name}: ${server.state}` },
      server.name, well(server) ? "" : h("small", {}, ` ${short(server.state)}`))),
    shown.length > MOST_CHIPS ? h("span", { class: "quiet" }, `and ${shown.length - MOST_CHIPS} more`) : null);
}

const short = (state) => state.split(/[:,;(]/)[0];

function chart(numbers, words, now, kind) {
  return h("div", { class: "chart" }, h("b", {}, now), spark(numbers || [], `${words} lately`, kind));
}

// ---------------------------------------------------------------- one service

const SPANS = { 60: "30 minutes", 720: "6 hours", 2880: "24 hours" };
const GRAPHS = [["sessions", "Sessions", String], ["total", "New sessions a second", rate], ["refused", "Refused a second", rate],
  ["failed", "Failed connects a second", rate], ["bytes_in", "From clients", (n) => `${size(n)}/s`], ["bytes_out", "To clients", (n) => `${size(n)}/s`]];

export function service(live, name, history, asked, look) {
  const one = live.service;
  if (!one || one.name !== name) {
    const there = live.services.some((other) => other.name === name);
    return h("div", {}, h("h1", {}, name), h("p", {}, there ? "…" : "There is no service of this name."));
  }
  return h("div", {},
    h("p", { class: "crumb" }, h("a", { href: "#/" }, "Services")),
    h("h1", {}, one.name, " ", badge(one.tone, one.says)),
    h("p", { class: "quiet" }, `${one.mode} on ${one.listen.join(", ")}${one.profile ? `, profile ${one.profile}` : ""}`,
      ` · ${one.sessions} sessions, ${one.total} in all, ${one.refused} refused${one.queued ? `, ${one.queued} waiting` : ""}`),
    one.imbalance_words ? h("p", { class: "attention" }, one.imbalance_words) : null,
    h("ul", { class: "remarks" }, one.remarks.map((remark) => h("li", { class: remark.tone }, remark.says))),
    h("h2", {}, "Real servers"), serverTable(one),
    latency(one.latency), graphs(one, history || {}, look),
    wayForm(one),
    h("h2", {}, "Sessions"), asked.sessions ? sessionTable(asked.sessions) : h("p", { class: "quiet" }, "…"),
    persistGroups(one).map((group) => persistence(group, asked.persistence?.[group])));
}

const PHASES = { queue: "wait for a place", connect: "connect to a server", first_byte: "first answer", total: "whole session or request" };

/** How long things took in the last minute. */
function latency(phases) {
  const words = (s) => (s === null ? "over 60 s" : s < 1 ? `${Math.round(s * 1000)} ms` : `${s} s`);
  return h("section", {}, h("h2", {}, "How long things took, in the last minute"), phases.length
    ? h("div", { class: "numbers phases" }, phases.map((one) => h("div", { class: "tile" }, h("span", {}, PHASES[one.phase]),
      h("b", {}, `${words(one.half_s)}`), h("span", {}, `half of ${one.count} within it; 95 % within ${words(one.most_s)}`))))
    : h("p", { class: "quiet" }, "nothing has ended since somebody looks"));
}

function graphs(one, history, look) {
  const choose = h("select", { "aria-label": "How far back", onchange: (event) => look.change(Number(event.currentTarget.value)) },
    Object.entries(SPANS).map(([points, words]) => h("option", { value: points, selected: Number(points) === look.points }, `the last ${words}`)));
  return h("section", {}, h("div", { class: "titled" }, h("h2", {}, "Statistics"), choose),
    h("div", { class: "graphs" }, GRAPHS.map(([key, words, write]) => {
      const numbers = history[key] || [];
      const known = numbers.filter((n) => n !== null);
      const now = key === "sessions" ? one.sessions : known.at(-1) ?? 0;
      return h("figure", { class: "graph" },
        h("figcaption", {}, h("span", {}, words), h("b", {}, write(now))),
        spark(thinned(numbers, 240), `${words}, the last ${SPANS[look.points]}`, key === "refused" || key === "failed" ? "errors" : ""),
        h("div", { class: "axis" }, h("span", {}, `${SPANS[look.points]} ago`), h("span", {}, known.length ? `most ${write(Math.max(...known))}` : "nothing yet"), h("span", {}, "now")));
    })));
}

export function persistGroups(one) {
  return [...new Set(one.pools.map((pool) => pool.persist?.group).filter(Boolean))];
}

function serverTable(one) {
  const rows = one.pools.flatMap((pool) => [
    one.pools.length > 1 || pool.route ? { group: pool.route ? poolWords(pool) : `everything else: ${poolWords(pool)}` } : null,
    ...pool.real_servers.map((server) => serverRow(one, pool, server))].filter(Boolean));
  const alone = one.pools.length === 1 && !one.pools[0].route ? h("p", { class: "quiet" }, poolWords(one.pools[0])) : null;
  return h("section", {}, alone,
    table(["real server", "state", "sessions >", "weight >", "failed >", "last check", "in >", "out >", ""], rows, "no real server"));
}

function poolWords(pool) {
  const matched = [...pool.hosts, ...(pool.paths || [])].join(" ");
  const route = pool.route ? `${pool.route}${matched ? ` (${matched})` : ""}: ` : "";
  const persist = pool.persist ? `, persistence by ${[pool.persist.by, ...pool.persist.fallback].join(", then ")} for ${span(pool.persist.timeout_s)}` : ", no persistence";
  return `${route}${pool.schedule.replaceAll("_", " ")}${persist}`;
}

function serverRow(one, pool, server) {
  return { tone: server.tone, cells: [
    h("span", {}, h("b", {}, server.name), " ", h("span", { class: "quiet" }, server.endpoint)),
    h("div", {}, badge(server.tone, server.state), progress(pool, server),
      server.protection ? h("small", { class: `line ${server.protection_tone}` }, server.protection) : null),
    server.sessions, server.weight, server.connect_failed ? h("b", { class: "bad" }, server.connect_failed) : 0,
    h("div", {}, server.check_words, server.check?.reason ? h("small", { class: "line quiet" }, server.check.reason) : null),
    size(server.bytes_in), size(server.bytes_out), actions(one, pool, server)] };
}

/** Drains and ramps: how far, and how long still. */
function progress(pool, server) {
  if (server.drain_ends_in_s !== null && pool.drain_s) {
    const left = server.drain_ends_in_s;
    return bar(pool.drain_s - left, pool.drain_s, left ? `drain ends in ${span(left)}` : "drain is over", server.state.includes(span(left)) ? "drain told" : "drain");
  }
  if (server.ramp_percent < 100 && pool.ramp_s) {
    return bar(server.ramp_percent, 100, `${server.ramp_percent} % of its share, all of it in ${span(pool.ramp_s * (1 - server.ramp_percent / 100))}`, "ramp");
  }
  return null;
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
  const rows = found.sessions.map((s) => [s.client, s.server || "none yet", s.why.replaceAll("_", " "), span(s.age_s), span(s.idle_s), size(s.bytes_in), size(s.bytes_out)]);
  return h("div", { class: "long" }, table(["client", "real server", "why there", "age >", "idle >", "in >", "out >"], rows, "no open session"),
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

export function realServers(facts, components) {
  return h("div", {}, h("h1", {}, "Real servers"), facts.real_servers.map((one) => h("section", { class: `card ${one.tone}` },
    h("div", { class: "titled" },
      h("h2", {}, one.name, " ", badge(one.tone, one.admin === "enabled" ? "enabled" : one.admin)),
      h("span", { class: "quiet" }, `${one.sessions} sessions, ${size(one.bytes_in)} in, ${size(one.bytes_out)} out`),
      h("div", { class: "buttons" },
        ["drain", "disable", "enable"].filter((word) => (word === "enable") !== (one.admin === "enabled"))
          .map((word) => button("operate", `${word} everywhere`, () => operate(word, one.name, ""), `${word} ${one.name} everywhere`)),
        one.admin === "enabled" ? button("operate", "maintenance…", () => { location.hash = `#/maintenance/${path(one.name)}`; }, `maintenance of ${one.name}`) : null)),
    h("ul", { class: "places" }, one.services.map((place) => h("li", { class: place.tone },
      h("a", { href: `#/service/${path(place.service)}` }, place.route ? `${place.service}/${place.route}` : place.service),
      h("span", { class: "state" }, place.state), h("span", { class: "quiet" }, `${place.sessions} sessions at ${place.endpoint}`)))),
    componentList(components[one.name]))));
}

/** What the checks read of an Exchange server's components. */
export function componentList(found) {
  const tones = { active: "good", inactive: "warning", unknown: "quiet" };
  return found?.length ? h("p", { class: "chips" }, h("span", { class: "quiet" }, "Exchange components: "), found.map((one) =>
    h("span", { class: `chip ${tones[one.state]}`, title: `${one.component} is ${one.state}: ${one.why}` }, one.component, one.state === "active" ? "" : h("small", {}, ` ${one.state}`)))) : null;
}

// ---------------------------------------------------------------- events, audit

export function eventList(events) {
  const rows = [...events].reverse().map((e) => ({ tone: { error: "bad", warning: "warning" }[e.level] || null,
    cells: [when(e.at), e.level, e.text] }));
  return table(["when", "level", "what"], rows, "nothing has happened since the start");
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
    h("div", { class: "buttons" }, button("admin", "Check", check),
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
    const parts = one.services.filter((name) => document.getElementById(`part-${name}`).checked);
    if (parts.length) settings.services = parts;
    for (const name of names) if (value(`p-${name}`)) settings[name] = typed(one.parameters[name].type, value(`p-${name}`));
    change(`Make the services of ${one.profile}?`, "POST", `/profiles/${path(one.profile)}/apply`, { name: value("name"), settings }, config.etag);
  };
  return h("div", {}, h("h1", {}, one.title), h("p", {}, one.description),
    may("admin") ? h("form", { class: "card filled", onsubmit: submit }, h("h2", {}, "Fill in"),
      field("name", "Name in the file", "mail", true), field("vip", "Address that clients connect to", "10.0.1.100", true),
      field("servers", "Real servers, by name", "ex1, ex2", true),
      h("fieldset", {}, h("legend", {}, "Services; none chosen: the usual ones"), one.services.map((name) =>
        h("label", { class: "check" }, h("input", { type: "checkbox", id: `part-${name}` }), name))),
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
