// Token view: every token of a text with a tint by its probability, and the likeliest tokens in its place.
const LEVELS = [0.5, 0.2, 0.05, 0.01];  // probabilities at and above which the tint is 0, 1, 2 and 3
const CANDIDATES = 5;
const completion = at("completion"), popup = at("alternatives");
let showsTokens = false, pointed = null;

// The tokens of one part of a stream, as { text, probability, likeliest }.
function tokensOf(text, logprobs) {
  const tokens = logprobs.tokens.map((token, index) => ({
    text: token,
    probability: Math.exp(logprobs.token_logprobs[index]),
    likeliest: Object.entries(logprobs.top_logprobs[index])
      .map(([name, value]) => [name, Math.exp(value)]).sort((a, b) => b[1] - a[1]).slice(0, CANDIDATES),
  }));
  if (tokens.map(token => token.text).join("") === text) return tokens;
  // Tokens that are parts of a character: one entry for the text, with the alternatives to the first token.
  const probability = tokens.reduce((product, token) => product * token.probability, 1);
  return text === "" ? [] : [{ text, probability, likeliest: tokens[0]?.likeliest ?? [] }];
}

function tokenSpan(token) {
  if (!token.likeliest) return token.text;  // of a text that was not written here
  const level = LEVELS.findIndex(limit => token.probability >= limit);
  const span = element("span", { className: `token h${2 * (level < 0 ? LEVELS.length : level)}`, textContent: token.text });
  span.token = token;
  return span;
}

function appendTokens(tokens) {
  completion.append(...(showsTokens ? tokens.map(tokenSpan) : [tokens.map(token => token.text).join("")]));
}

function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵") || "∅";
}

function percent(probability) {
  const value = 100 * probability;
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

function point(span) {
  pointed?.classList.remove("pointed");
  pointed = span;
  popup.hidden = !span;
  if (!span) return;
  span.classList.add("pointed");
  const { text, probability, likeliest } = span.token;
  const rows = likeliest.map(([name, value]) => {
    const bar = element("i");
    bar.style.width = `${Math.max(100 * value, 1)}%`;
    return element("li", { className: name === text ? "chosen" : "" },
      element("b", { textContent: visible(name) }), element("span", {}, bar), element("em", { textContent: percent(value) }));
  });
  popup.replaceChildren(
    element("p", {}, element("strong", { textContent: visible(text) }), ` ${percent(probability)}`),
    element("p", { textContent: t("alternatives") }), element("ul", {}, ...rows));
  const box = span.getBoundingClientRect(), margin = 8;
  const above = box.bottom + popup.offsetHeight + margin > innerHeight;
  popup.style.top = `${above ? Math.max(box.top - popup.offsetHeight - margin, margin) : box.bottom + margin}px`;
  popup.style.left = `${Math.max(margin, Math.min(box.left, document.documentElement.clientWidth - popup.offsetWidth - margin))}px`;
}

function showTokens(on) {
  showsTokens = on;
  at("tokens").setAttribute("aria-pressed", on);
  at("legend").hidden = !on;
  completion.tabIndex = on ? 0 : -1;
  completion.classList.toggle("tinted", on);
  point(null);
  completion.textContent = "";
  if (shown.tokens) appendTokens(shown.tokens);
  else completion.append(shown.text);
}

at("tokens").addEventListener("click", () => showTokens(!showsTokens));
completion.addEventListener("pointerover", event => { if (event.target.token) point(event.target); });
completion.addEventListener("click", event => point(event.target.token ? event.target : null));
completion.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") point(null); });
completion.addEventListener("blur", () => point(null));
addEventListener("scroll", () => point(null), { passive: true });
completion.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") point(null);
  if (!step || !showsTokens) return;
  event.preventDefault();
  const spans = [...completion.children];
  const next = pointed ? spans[spans.indexOf(pointed) + step] : spans[step > 0 ? 0 : spans.length - 1];
  if (next) point(next);
});

at("legend").append(t("tokens_help"), element("span", { className: "scale", ariaHidden: "true" },
  t("likely"), ...[0, 1, 2, 3, 4].map(level => element("i", { className: `h${2 * level}` })), t("unlikely")));
