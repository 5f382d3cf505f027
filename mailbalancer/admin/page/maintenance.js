// Maintenance: what is under way, what can be begun, what is planned.

import { bringBack, button, change, takeOut } from "./actions.js";
import { get, may } from "./api.js";
import { badge, bar, h, span, table, when } from "./dom.js";
import { componentList } from "./views.js";

const STAGES = { draining: ["warning", "draining"], empty: ["good", "safe to reboot"], returning: ["warning", "comes back"] };

export function maintenance({ facts, servers, config, chosen }) {
  const out = new Set(facts.active.map((one) => one.real_server));
  return h("div", {}, h("h1", {}, "Maintenance"),
    facts.active.length ? facts.active.map(underWay)
      : h("p", { class: "empty" }, "No real server is in maintenance. Take one out below: it drains everywhere, and this page says when it is safe to reboot."),
    may("operate") ? begin(servers.filter((one) => !out.has(one.name)), chosen) : null,
    h("h2", {}, "Planned windows"), windows(facts.windows, config),
    may("admin") ? plan(servers) : null,
    Object.keys(facts.components).length ? h("section", {}, h("h2", {}, "What Exchange says of itself"),
      h("p", { class: "quiet" }, "As the checks read it: a healthcheck page is there while its component is active, and SMTP answers 421 4.3.2 while HubTransport is not."),
      Object.entries(facts.components).map(([name, found]) => h("div", {}, h("h3", {}, name), componentList(found)))) : null);
}

function underWay(one) {
  const [tone, words] = STAGES[one.stage];
  const began = Date.parse(one.began_at);
  const whole = one.until ? (Date.parse(one.until) - began) / 1000 : 0;
  return h("section", { class: `card ${tone}` },
    h("div", { class: "titled" }, h("h2", {}, one.real_server, " ", badge(tone, words)),
      h("span", { class: "quiet" }, "since ", when(one.began_at), ` by ${one.by}`),
      one.stage === "returning" ? null : button("operate", "bring back", () => bringBack(one.real_server), `bring ${one.real_server} back`)),
    h("p", { class: "plan", role: "status" }, one.says),
    one.until_in_s === null ? null : bar(whole - one.until_in_s, whole, `comes back in ${span(one.until_in_s)}`, "drain"),
    one.stage === "draining" ? h("ul", { class: "places" }, one.places.map((place) => h("li", {}, place.place, h("span", { class: "state" }, `${place.sessions} sessions`)))) : null,
    componentList(one.components));
}

function begin(servers, chosen) {
  const choice = h("select", { id: "server" }, servers.map((one) => h("option", { value: one.name, selected: one.name === chosen }, one.name)));
  const until = h("input", { id: "until", placeholder: "02:00", autocomplete: "off" });
  const submit = (event) => {
    event.preventDefault();
    takeOut(event.currentTarget.elements.server.value, event.currentTarget.elements.until.value.trim());
  };
  return h("form", { class: "inline card", onsubmit: submit }, h("h2", {}, "Take a real server out"),
    h("div", { class: "field" }, h("label", { for: "server" }, "Real server"), choice),
    h("div", { class: "field" }, h("label", { for: "until" }, "Back at (empty: until brought back)"), until),
    h("button", { class: "main" }, "Look at what it means"));
}

function windows(planned, config) {
  return table(["real server", "when", "next", ""], planned.map((one, place) => ({ tone: one.under_way ? "warning" : null, cells: [
    one.real_server, one.says.slice(one.real_server.length + 1),
    one.begins_at === null ? "over" : h("span", {}, one.under_way ? "under way, ends " : "", when(one.under_way ? one.ends_at : one.begins_at)),
    button("admin", "remove", () => change(`Remove window ${place + 1}?`, "DELETE", `/config/maintenance/windows/${place + 1}`, undefined, config.etag), `remove window ${place + 1}`)] })),
    "nothing is planned");
}

function plan(servers) {
  const field = (id, words, hint) => h("div", { class: "field" }, h("label", { for: id }, words), h("input", { id, placeholder: hint, required: true, autocomplete: "off" }));
  const submit = async (event) => {
    event.preventDefault();
    const { planned, from, to } = event.currentTarget.elements;
    const window = { real_server: planned.value, from: from.value.trim(), until: to.value.trim() };
    const { etag } = await get("/config");
    change(`Plan maintenance of ${window.real_server}?`, "POST", "/config/maintenance/windows", window, etag);
  };
  return h("form", { class: "inline card", onsubmit: submit }, h("h2", {}, "Plan a window"),
    h("div", { class: "field" }, h("label", { for: "planned" }, "Real server"), h("select", { id: "planned" }, servers.map((one) => h("option", { value: one.name }, one.name)))),
    field("from", "From (a date, or a weekday for every week)", "sunday 01:00"), field("to", "Until", "sunday 03:00"),
    h("button", {}, "Look at the change"));
}
