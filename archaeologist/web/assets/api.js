// Requests to this server. The browser keeps replies and asks with their ETag.

const TOKEN = "archaeologist-token";

export class Problem extends Error {
  constructor(message, { code = "", status = 0 } = {}) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const query = (parameters) => {
  const known = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return known.length ? `?${new URLSearchParams(known)}` : "";
};

export const address = (path, parameters = {}) => `${path}${query(parameters)}`;

export const ofCampaign = ({ hero, campaign }, rest, parameters = {}) =>
  address(`/api/analysis/${encodeURIComponent(campaign)}/${rest}`, { hero_id: hero, ...parameters });

async function send(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Problem("The server does not answer. Is archaeologist running?");
  }
  let body = null;
  try {
    body = await reply.json();
  } catch {
    throw new Problem(`The server answered ${reply.status} without JSON.`, { status: reply.status });
  }
  return { reply, body };
}

export async function read(path) {
  const { reply, body } = await send(path);
  if (!reply.ok) throw new Problem(body.error ?? `The server answered ${reply.status}.`, { ...body, status: reply.status });
  return body;
}

// Asks for a job, or takes one back: the answer, accepted or not.
export async function change(method, path, body = null) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const found = await send(path, { method, headers, body: body ? JSON.stringify(body) : undefined });
  if (found.body.accepted !== true) {
    throw new Problem(found.body.message ?? found.body.error ?? `The server answered ${found.reply.status}.`, {
      code: found.body.code, status: found.reply.status,
    });
  }
  return found.body;
}

export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}
