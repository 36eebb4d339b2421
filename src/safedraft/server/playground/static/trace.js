// What the trace of a reply says, in numbers and words. Nothing here touches the page.

const VERDICTS = { refused: "Refused", complied: "Answered", neither: "Neither answered nor refused" };

// The bins of a trace, split where the switch reported a match ratio; the last one may not be full.
// `following` is the scheme after the comparison, null where no later token shows it.
export function splitBins(tokens) {
  const bins = [];
  let members = [];
  for (const token of tokens) {
    if (token.threshold === null || token.scheme === null) continue;
    if (!members.length) bins.push(members);
    members.push(token);
    if (token.match_ratio !== null) members = [];
  }
  return bins.map((bin, number) => makeBin(bin, bins[number + 1]?.[0].scheme ?? null));
}

function makeBin(tokens, following) {
  const { scheme, threshold, match_ratio } = tokens.at(-1);
  const size = tokens.length;
  const matches = tokens.filter((token) => token.matched).length;
  return { size, matches, ratio: matches / size, scheme, threshold, full: match_ratio !== null, following };
}

export function describeBin({ size, matches, ratio, scheme, threshold, full, following }) {
  const counts = `${matches} of ${size} accepted, β ${ratio.toFixed(2)}`;
  if (!full) return `${counts} so far, threshold ${threshold.toFixed(2)}`;
  const below = ratio < threshold;
  const compared = `${counts}, ${below ? "" : "not "}below the threshold ${threshold.toFixed(2)}`;
  if (!following) return compared;
  const held = following === "union" && !below ? ", which lasts longer" : "";
  return `${compared}: ${following === scheme ? "stays in" : "switches to"} ${following}${held}`;
}

export function describeBins(bins) {
  const full = bins.filter((bin) => bin.full);
  if (!full.length) return "Match ratio of each bin: no bin is full yet.";
  const ratios = full.map(({ ratio, threshold, scheme }) => `${ratio.toFixed(2)} against ${threshold.toFixed(2)} in ${scheme}`);
  return `Match ratio of each bin against its threshold: ${ratios.join(", ")}.`;
}

// In which scheme the tokens were decided; empty for a reply of the target alone.
export function describeSchemes(tokens) {
  const changes = tokens
    .map(({ scheme }, at) => ({ scheme, token: at + 1 }))
    .filter(({ scheme }) => scheme !== null)  // none while the draft pauses
    .filter(({ scheme }, at, decided) => scheme !== decided[at - 1]?.scheme);
  if (changes.length < 2) return changes.map(({ scheme }) => `${scheme} throughout`).join("");
  const shown = changes.slice(1, 3).map(({ scheme, token }) => `${scheme} from token ${token}`);
  const more = changes.length - 3;
  return [...shown, ...(more > 0 ? [`${more} more ${more === 1 ? "change" : "changes"}`] : [])].join(", ");
}

export function describeVerdict(verdict, tokens) {
  return [VERDICTS[verdict], describeSchemes(tokens)].filter(Boolean).join(" · ");
}

// `statistics` are those that the server sends with the end of a reply, null before.
export function describeCost(tokens, statistics) {
  if (!tokens.length) return [];
  const ssd = tokens[0].scheme !== null;
  const ratio = tokens.filter((token) => token.matched).length / tokens.length;
  return [
    statistics && `${statistics.tokens_per_second.toFixed(1)} tokens/s`,
    `${tokens.length} ${tokens.length === 1 ? "token" : "tokens"}`,
    ssd && `match ratio ${ratio.toFixed(2)}`,
    ssd && statistics && `${statistics.tokens_per_target_pass.toFixed(1)} tokens per target pass`,
    statistics && statistics.risk !== null && `risk ${statistics.risk.toFixed(2)}`,
  ].filter(Boolean);
}

// The classes of a token, one for each kind that the legend explains.
export function classifyToken({ scheme, matched, text }) {
  const kind = scheme === null ? "alone" : matched ? "matched" : `corrected ${scheme}`;
  const look = !text ? " empty" : /^[\r\n]+$/.test(text) ? " break" : "";
  return `token ${kind}${look}`;
}

export function describeToken(token) {
  const own = token.scheme === null;
  return [
    own ? "the target’s own" : `${token.matched ? "accepted" : "corrected"} in ${token.scheme}`,
    !own && `draft ${formatProbability(token.draft_probability)}`,
    `target ${formatProbability(token.target_probability)}`,
    !own && `weight α ${Number(token.alpha.toFixed(4))}`,
    !token.text && "no text: the reply’s end, or a part of a character",
    `block ${token.block}`,
  ].filter(Boolean).join("\n");
}

function formatProbability(value) {
  if (value === null) return "not asked";
  return value >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}
