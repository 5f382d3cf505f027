// Which page is shown, and the live feed under it.

import { failed } from "./actions.js";
import { get, logIn, logOut, may, visit, whoAmI } from "./api.js";
import { certificates } from "./certificates.js";
import { h, patchChildren } from "./dom.js";
import { maintenance } from "./maintenance.js";
import * as views from "./views.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const PAGES = [["#/", "Overview"], ["#/real-servers", "Real servers"], ["#/maintenance", "Maintenance"], ["#/events", "Events"], ["#/configuration", "Configuration"],
  ["#/profiles", "Profiles"], ["#/certificates", "Certificates"], ["#/audit", "Audit"]];
const SLOW_MS = 5000;

let feed = null;
let live = null;
let history = {};
let drawnAt = 0; // when the history was fetched; long ones change slowly
const look = { points: 60, change: (points) => { look.points = points; drawnAt = 0; slowly(shown, true); } };
let asked = {};
const recent = {}; // of every service, the newest RECENT seconds of what is told live
const RECENT = 90;
let shown = 0; // counts pages, so that an answer for a page that was left is not drawn

function place() {
  const [, kind = "", name = ""] = location.hash.replace(/^#/, "").split("/");
  return { kind, name: decodeURIComponent(name) };
}

function draw(...content) {
  patchChildren(main, content);
}

// ---------------------------------------------------------------- pages that follow the feed

function drawLive() {
  const { kind, name } = place();
  if (!live) return;
  if (kind === "") draw(views.overview(live, recent, drawLive));
  else if (kind === "service") draw(views.service(live, name, history[name], asked, look));
}

function remember(services) {
  for (const one of services) {
    const now = { sessions: one.sessions, total: one.rates.total, errors: one.rates.refused + one.rates.failed };
    const series = (recent[one.name] ||= { sessions: [], total: [], errors: [] });
    for (const key of Object.keys(now)) series[key] = [...series[key], now[key]].slice(-RECENT);
  }
}

function listen(service) {
  if (feed) feed.close();
  feed = new EventSource(`/api/v1/live${service ? `?service=${encodeURIComponent(service)}` : ""}`);
  feed.onopen = () => { link.textContent = ""; };
  feed.onmessage = (message) => {
    live = JSON.parse(message.data);
    remember(live.services);
    drawLive();
  };
  feed.onerror = () => {
    link.textContent = "The balancer does not answer; trying again…";
    if (feed.readyState === EventSource.CLOSED) setTimeout(show, SLOW_MS);
  };
}

async function slowly(number, once) {
  if (number !== shown) return;
  const { kind, name } = place();
  try {
    if (kind === "service") {
      if (Date.now() - drawnAt > 4 * SLOW_MS || !history[name]) {
        history = (await get(`/statistics?service=${encodeURIComponent(name)}&points=${look.points}`)).services;
        drawnAt = Date.now();
      }
      asked.sessions = await get(`/sessions?service=${encodeURIComponent(name)}&limit=50`);
      const groups = live?.service ? views.persistGroups(live.service) : [];
      for (const group of groups) {
        const found = await get(`/persistence?group=${encodeURIComponent(group)}&limit=50`);
        asked.persistence = { ...asked.persistence, [group]: found.groups[0] };
      }
    }
  } catch (error) {
    if (error.status === 401) { show(); return; }
  }
  if (number === shown) {
    drawLive();
    if (!once) setTimeout(() => slowly(number), SLOW_MS);
  }
}

// ---------------------------------------------------------------- pages that are fetched once

const FOLLOWED = new Set(["real-servers", "maintenance", "events"]); // those whose facts move
const FOLLOW_MS = 2000;
const FETCHED = {
  "real-servers": async () => views.realServers(await get("/real-servers"), (await get("/maintenance")).components),
  maintenance: async (name) => maintenance({ facts: await get("/maintenance"), servers: (await get("/real-servers")).real_servers, config: await get("/config"), chosen: name }),
  events: async () => views.events(await get("/events?limit=500")),
  certificates: async () => certificates(await get("/certificates")),
  audit: async () => views.audit(await get("/audit?limit=200")),
  profiles: async () => views.profiles(await get("/profiles")),
  profile: async (name) => views.profile({ one: await get(`/profiles/${encodeURIComponent(name)}`), config: await get("/config") }),
  configuration: async () => views.configuration({ config: await get("/config"), history: await get("/config/history") }),
};

async function show() {
  const number = (shown += 1);
  const { kind, name } = place();
  document.getElementById("dialog").close();
  try {
    await whoAmI();
  } catch (error) {
    return askForToken(error);
  }
  drawHead();
  asked = {};
  if (kind === "" || kind === "service") {
    if (live) live.service = null;
    main.replaceChildren(h("p", { class: "quiet" }, "…"));
    listen(kind === "service" ? name : "");
    return slowly(number);
  }
  if (feed) { feed.close(); feed = null; }
  try {
    const content = FETCHED[kind] ? await FETCHED[kind](name) : h("p", {}, "There is no such page.");
    if (number === shown) main.replaceChildren(content);
    if (FOLLOWED.has(kind)) setTimeout(() => follow(number, kind, name), FOLLOW_MS);
  } catch (error) {
    if (number === shown) main.replaceChildren(failed(error));
  }
  return null;
}

/** Ask again and again while the page is looked at. */
async function follow(number, kind, name) {
  if (number !== shown) return;
  try {
    const fresh = document.hidden ? null : await FETCHED[kind](name);
    if (number !== shown) return;
    link.textContent = "";
    if (fresh) draw(fresh);
  } catch (error) {
    if (error.status === 401) { show(); return; }
    link.textContent = "The balancer does not answer; trying again…";
  }
  setTimeout(() => follow(number, kind, name), FOLLOW_MS);
}

function drawHead() {
  const here = `#/${place().kind === "service" ? "" : place().kind === "profile" ? "profiles" : place().kind}`;
  const pages = PAGES.filter(([to]) => to !== "#/audit" || may("admin"));
  document.getElementById("nav").replaceChildren(...pages.map(([to, words]) =>
    h("a", { href: to, "aria-current": here === to ? "page" : null }, words)));
  document.querySelector("#nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  const leave = async () => { await logOut(); show(); };
  document.getElementById("who").replaceChildren(h("span", { class: "quiet", title: `${visit.name} (${visit.role})` }, visit.name, h("small", {}, ` (${visit.role})`)),
    visit.csrf ? h("button", { onclick: leave }, "Log out") : h("button", { onclick: () => askForToken(null) }, "Log in"));
}

function askForToken(error) {
  if (feed) { feed.close(); feed = null; }
  document.getElementById("nav").replaceChildren();
  document.getElementById("who").replaceChildren();
  const token = h("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const outcome = h("div", { "aria-live": "assertive" }, error && error.status !== 401 ? failed(error) : "");
  const submit = async (event) => {
    event.preventDefault();
    try {
      await logIn(token.value.trim());
      show();
    } catch (wrong) {
      outcome.replaceChildren(failed(wrong));
      token.select();
    }
  };
  main.replaceChildren(h("form", { class: "login", onsubmit: submit }, h("h1", {}, "Log in"),
    h("label", { for: "token" }, "Token"), token, h("button", { class: "main" }, "Log in"), outcome,
    h("p", { class: "quiet" }, "`mailbalancer token create NAME --role operate` makes one.")));
  token.focus();
}

window.addEventListener("hashchange", () => { show(); main.focus(); });
show();
