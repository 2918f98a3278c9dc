// Which campaign is looked at: chosen from those that are there, kept in the address.

import { read } from "./api.js";
import { byId, choose } from "./dom.js";

const heroes = byId("hero");
const campaigns = byId("campaign");
let known = [];

export const chosen = () => (campaigns.value ? { hero: heroes.value, campaign: campaigns.value } : null);

// Reads which campaigns there are, and chooses: the one that is chosen, that of the address, the one analysed most.
export async function findCampaigns() {
  const found = [];
  for (let offset = 0; offset !== null;) {
    const page = await read(`/api/campaigns?offset=${offset}`);
    found.push(...page.campaigns);
    offset = page.next_offset;
  }
  // Nothing is touched where nothing is new: a list may be open.
  if (JSON.stringify(found) === JSON.stringify(known)) return;
  known = found;
  const asked = new URLSearchParams(location.search);
  const wanted = chosen() ?? { hero: asked.get("hero"), campaign: asked.get("campaign") };
  const is = (one) => one.hero_id === wanted.hero && one.campaign_id === wanted.campaign;
  const most = (list) => [...list].sort((one, other) => other.analyzed - one.analyzed)[0];
  const first = known.find(is) ?? most(known);
  const names = [...new Set(known.map((one) => one.hero_id))];
  choose(heroes, names.map((name) => [name, name]), first?.hero_id);
  ofHero(first?.campaign_id);
}

function ofHero(wanted) {
  const own = known.filter((one) => one.hero_id === heroes.value);
  choose(campaigns, own.map((one) => [one.campaign_id, `${one.campaign_id} (${one.analyzed} analysed)`]), wanted);
  const now = chosen();
  if (now) history.replaceState(null, "", `?${new URLSearchParams({ hero: now.hero, campaign: now.campaign })}${location.hash}`);
}

export function onChoice(changed) {
  byId("campaign-form").addEventListener("submit", (event) => event.preventDefault());
  heroes.addEventListener("change", () => { ofHero(); changed(); });
  campaigns.addEventListener("change", () => { ofHero(campaigns.value); changed(); });
}
