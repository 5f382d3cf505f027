// Elements from facts. Text only ever becomes text: nothing here, or anywhere on this page, parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "polyline", "polygon", "title", "line"]);

/** An element. `on…` properties are listeners; null and false children and properties are left out. */
export function h(tag, properties, ...children) {
  const inSvg = SVG_TAGS.has(tag);
  const element = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  element.listeners = {};
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.listeners[name.slice(2)] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const name of Object.keys(element.listeners)) element.addEventListener(name, heard);
  element.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false).map(node));
  return element;
}

function node(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

// one listener for all, so that a patched element follows its new properties
function heard(event) {
  const listener = event.currentTarget.listeners[event.type];
  if (listener) listener(event);
}

/** Make `old` like `fresh`, touching only what differs: focus, selection and scrolling stay. */
export function patch(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.classList?.contains("ways")) return; // what was asked for stays
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = old.listeners || {};
  old.listeners = fresh.listeners || {};
  for (const name of Object.keys(old.listeners)) if (!before[name]) old.addEventListener(name, heard);
  patchChildren(old, [...fresh.childNodes]);
}

export function patchChildren(parent, wanted) {
  wanted.forEach((fresh, place) => {
    const old = parent.childNodes[place];
    if (old) patch(old, fresh);
    else parent.append(fresh);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function points(numbers, top) {
  const step = 100 / Math.max(1, numbers.length - 1);
  const parts = [[]];
  numbers.forEach((n, place) => {
    if (n === null) parts.push([]);
    else parts.at(-1).push([place * step, 23 - (n / top) * 21]);
  });
  return parts.filter((part) => part.length > 1);
}

const line = (part) => part.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

/** A small line of numbers over its area, newest at the right; gaps stay gaps. */
export function spark(numbers, label, kind) {
  const top = Math.max(1, ...numbers.filter((n) => n !== null));
  const parts = points(numbers, top);
  const look = kind === "errors" && !numbers.some((n) => n > 0) ? "none" : kind;
  return h("svg", { class: `spark ${look || ""}`, viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("line", { x1: 0, x2: 100, y1: 23.5, y2: 23.5, class: "base" }),
    parts.map((p) => h("polygon", { points: `${p[0][0].toFixed(1)},23 ${line(p)} ${p.at(-1)[0].toFixed(1)},23` })),
    parts.map((p) => h("polyline", { points: line(p) })));
}

/** As many points as a screen can show, each the largest of those it stands for: no peak is lost. */
export function thinned(numbers, most) {
  const step = Math.ceil(numbers.length / most);
  if (step < 2) return numbers;
  const out = [];
  for (let place = 0; place < numbers.length; place += step) {
    const known = numbers.slice(place, place + step).filter((n) => n !== null);
    out.push(known.length ? Math.max(...known) : null);
  }
  return out;
}

/** How far something has come, with what is left in words. */
export function bar(value, most, words, kind) {
  return h("div", { class: `bar ${kind}` }, h("progress", { max: most, value: Math.max(0, Math.min(most, value)), "aria-label": words }), h("small", {}, words));
}

export function table(headings, rows, empty) {
  if (!rows.length) return h("p", { class: "quiet" }, empty || "nothing");
  const names = headings.map((heading) => heading.replace(/ >$/, ""));
  const right = headings.map((heading) => heading.endsWith(" >"));
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, names.map((name, i) => h("th", { scope: "col", class: right[i] && "number" }, name)))),
    h("tbody", {}, rows.map((row) => row.group
      ? h("tr", { class: "group" }, h("th", { colspan: names.length, scope: "rowgroup" }, row.group))
      : h("tr", { class: row.tone || null }, (row.cells || row).map((cell, i) =>
        h("td", { class: right[i] && "number", "data-label": names[i] }, cell)))))));
}

export function badge(tone, text) {
  return h("span", { class: `badge ${tone}` }, text);
}

/** A diff with its lines told apart by more than colour. */
export function diff(text) {
  const kinds = { "+": "added", "-": "removed", "@": "place" };
  return h("pre", { class: "diff", tabindex: 0 }, (text || "no difference").split("\n").map((line) =>
    h("span", { class: line.startsWith("+++") || line.startsWith("---") ? "place" : kinds[line[0]] || "same" }, `${line}\n`)));
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (bytes >= 1000 && place < units.length - 1) { bytes /= 1024; place += 1; }
  return `${bytes < 10 && place ? bytes.toFixed(1) : Math.round(bytes)} ${units[place]}`;
}

export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const day = Math.floor(s / 86400);
  const rest = `${Math.floor((s % 86400) / 3600)}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}`;
  return day ? `${day} d ${rest}` : s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : rest;
}

export function rate(n) {
  return n < 99.95 ? n.toFixed(1) : String(Math.round(n));
}

/** An instant of the balancer's as a clock here shows it; the day only when it is another one. */
export function when(iso) {
  const at = new Date(iso);
  const clock = at.toLocaleTimeString([], { hour12: false });
  const day = at.toLocaleDateString([], { day: "2-digit", month: "short" });
  return h("time", { datetime: iso, title: iso }, at.toDateString() === new Date().toDateString() ? clock : `${day} ${clock}`);
}
