// The Battle Log live. The browser comes back by itself with the last id; where it gives up, we do. A tab that nobody sees
// holds no stream: a browser opens six connections to a server, and six streams would leave none to anything else.

import { address } from "./api.js";
import { byId, fill, make, say } from "./dom.js";
import { severityOf } from "./sections.js";

const AGO = 300; // events from which a page begins, progress among them
const MOST = 200; // entries on the page
const AGAIN = 3000; // milliseconds

const list = byId("entries");
let source = null;
let resume = () => {};
let timer = 0;
let last = null;

// Follows a campaign's events, or everybody's; `heard` is told each event and its sequence, `bus` whether the server has its bus.
export function follow(campaign, { heard, bus }) {
  stop();
  last = null;
  fill(list);
  resume = () => open(campaign, { heard, bus });
  if (!document.hidden) resume();
}

document.addEventListener("visibilitychange", () => {
  stop();
  if (document.hidden) say("stream", "paused while nobody looks");
  else resume();
});

function stop() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

function open(campaign, told) {
  const position = last === null ? { last: AGO } : { after: last };
  const ours = new EventSource(address("/api/events", { hero_id: campaign?.hero, campaign_id: campaign?.campaign, ...position }));
  source = ours;
  ours.onopen = () => say("stream", "live");
  ours.onmessage = (message) => {
    if (Number(message.lastEventId) <= Number(last ?? 0)) return;
    last = message.lastEventId;
    const event = JSON.parse(message.data);
    if (event.type !== "analysis.progress") add(event);
    told.heard(event, Number(last));
  };
  ours.addEventListener("bus", (message) => {
    const { connected } = JSON.parse(message.data);
    say("stream", connected ? "live" : "the bus is down: entries come when it is back, none is lost");
    told.bus(connected);
  });
  ours.onerror = () => {
    say("stream", "reconnecting … what is missed comes after");
    if (ours.readyState !== EventSource.CLOSED || source !== ours) return;
    timer = setTimeout(() => open(campaign, told), AGAIN);
  };
}

const KINDS = { error: "critical", critical: "critical", warning: "warning", success: "success", info: "info" };

function add(event) {
  const severity = KINDS[event.severity] ?? "info";
  const at = new Date(event.time);
  list.prepend(make("li", { class: severity, "data-type": event.type },
    make("p", {}, severityOf(severity), " ", make("time", { datetime: event.time, title: at.toLocaleString() }, at.toLocaleTimeString())),
    make("p", {}, event.message)));
  while (list.children.length > MOST) list.lastElementChild.remove();
}
