// Requests to the API, with the visit's CSRF token on every change.

export class Failure extends Error {
  constructor(status, facts) {
    super(facts.error || `status ${status}`);
    this.status = status;
    this.remedy = facts.remedy || "";
    this.problems = facts.problems || [];
  }
}

export const visit = { name: "", role: "", csrf: "" };
const ORDER = ["metrics", "read", "operate", "admin"];

/** Whether the visitor's role covers this one. */
export function may(role) {
  return ORDER.indexOf(visit.role) >= ORDER.indexOf(role);
}

export async function ask(method, path, body, headers) {
  const sent = { Accept: "application/json", ...headers };
  if (method !== "GET") {
    sent["X-CSRF-Token"] = visit.csrf;
    sent["Content-Type"] = "application/json";
  }
  const response = await fetch(`/api/v1${path}`, {
    method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
  });
  const facts = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failure(response.status, facts);
  return facts;
}

export const get = (path) => ask("GET", path);

export async function whoAmI() {
  Object.assign(visit, { name: "", role: "", csrf: "" }, await get("/visit"));
}

export async function logIn(token) {
  Object.assign(visit, await ask("POST", "/visit", { token }));
}

export async function logOut() {
  await ask("DELETE", "/visit");
  Object.assign(visit, { name: "", role: "", csrf: "" });
}
