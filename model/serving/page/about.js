// The model in words and numbers, its learning curve, and the start of the page.
const BASELINES = ["uniform", "unigram", "bigram", "ngram", "zstd"];

// "1.3M", and in Chinese "130 万".
function rounded(count) {
  return new Intl.NumberFormat(language, { notation: "compact", maximumSignificantDigits: 2 }).format(count);
}

function bits(value) {
  return value.toFixed(2);
}

function story() {
  const parts = [t("small", { parameters: rounded(run.parameters) })];
  const text = run.trained_on.split("/")[1];
  if (text) parts.push(t(run.task ? "tuned" : "trained", { text }));
  if (text && run.characters) parts.push(t("characters", { count: number.format(run.characters) }));
  if (run.finished) {
    const date = new Intl.DateTimeFormat(language, { dateStyle: "long" }).format(new Date(run.finished));
    const minutes = run.seconds / 60;
    const time = minutes < 100 ? t("minutes", { count: number.format(Math.max(Math.round(minutes), 1)) })
                               : t("hours", { count: number.format(Math.round(minutes / 60)) });
    parts.push(run.seconds ? t("finished", { date, time: time.trim() }) : t("finished_only", { date }));
  }
  return parts.join("") + t("period") + score();
}

// The bits per character beside the best baseline that they beat, and the best one that they do not.
function score() {
  if (run.bits_per_char === null) return "";
  const known = BASELINES.filter(name => name in run.baselines).sort((a, b) => run.baselines[b] - run.baselines[a]);
  const beaten = known.filter(name => run.bits_per_char < run.baselines[name]).at(-1);
  const best = known.at(-1);
  const compare = (key, name) => t(key, { name: t(name), bits: bits(run.baselines[name]) });
  const parts = [beaten && compare("better", beaten), best && best !== beaten && compare("worse", best)].filter(Boolean);
  const text = t(run.task ? "score_answers" : "score", { bits: bits(run.bits_per_char) });
  return text + (parts.length ? t("colon") + parts.join(t("comma")) : "") + t("period").trim();
}

function showFacts() {
  const facts = {
    fact_parameters: number.format(run.parameters),
    fact_vocabulary: number.format(run.tokenizer.ids),
    fact_tokenizer: run.tokenizer.kind,
    ...(run.steps && { fact_steps: number.format(run.steps) }),  // an imported run has none
    fact_score: run.bits_per_char === null ? t("unmeasured") : run.bits_per_char.toFixed(3),
    fact_run: run.run.split("/")[2],
  };
  for (const [name, value] of Object.entries(facts)) {
    at("facts").append(element("dt", { textContent: t(name) }), element("dd", { textContent: value }));
  }
}

function svg(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

// Steps of 1, 2 or 5 times a power of ten that divide a range into at most `count` parts.
function ticks(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => (high - low) / size <= count);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, i) => (Math.ceil(low / step) + i) * step);
}

// Draw the curve at the width of its box, so that its text has the same size everywhere.
function drawCurve() {
  const { training, validation } = run.curve;
  const width = at("curve").clientWidth, height = Math.round(Math.min(Math.max(width * 0.45, 240), 360));
  if (!width) return;
  const isWide = width >= 560;  // with room for the names of the baselines beside the curve; else they are in the key
  const top = 12, right = isWide ? 168 : 40, bottom = 30, left = 34;
  const losses = [...training, ...validation].map(point => point[1]);
  const ceiling = Math.max(...validation.map(point => point[1]), run.baselines.uniform ?? 0);
  const high = Math.min(Math.max(...losses), ceiling) * 1.03;
  const lines = BASELINES.filter(name => run.baselines[name] <= high);
  const low = Math.min(...losses, ...lines.map(name => run.baselines[name])) * 0.97;
  const last = Math.max(...[...training, ...validation].map(point => point[0]), 1);
  const x = step => left + (width - left - right) * step / last;
  const y = loss => top + (height - top - bottom) * (high - Math.min(loss, high)) / (high - low);
  const path = points => points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${t("curve")}. ${score()}` });
  for (const loss of ticks(low, high, 5)) {
    drawing.append(svg("line", { x1: left, x2: width - right, y1: y(loss), y2: y(loss), class: "grid" }),
      svg("text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, number.format(loss)));
  }
  for (const step of ticks(0, last, width < 500 ? 3 : 6)) {
    drawing.append(svg("text", { x: x(step), y: height - 10, "text-anchor": !step ? "start" : x(step) > width - 30 ? "end" : "middle" }, number.format(step)));
  }
  for (const entry of document.querySelectorAll("#curve-key .baseline")) entry.remove();
  let above = -Infinity;  // the height of the label above
  for (const name of lines.sort((a, b) => run.baselines[b] - run.baselines[a])) {
    const loss = run.baselines[name];
    drawing.append(svg("line", { x1: left, x2: width - right, y1: y(loss), y2: y(loss), class: "baseline" }));
    above = Math.max(y(loss) - 5, above + 15);
    const label = `${t(name)} ${bits(loss)}`;
    drawing.append(svg("text", { x: width - right + 8, y: above + 9 }, isWide ? label : bits(loss)));
    if (!isWide) at("curve-key").append(element("span", { className: "baseline" }, element("i"), label));
  }
  drawing.append(svg("polyline", { points: path(training), class: "training" }), svg("polyline", { points: path(validation), class: "validation" }));
  for (const [step, loss] of validation) drawing.append(svg("circle", { cx: x(step), cy: y(loss), r: 3, class: "validation" }));
  at("curve").replaceChildren(drawing);
}

function showCurve() {
  if (run.curve.validation.length < 2) return;
  at("figure").hidden = false;
  for (const name of ["training", "validation"]) {
    at("curve-key").append(element("span", { className: name }, element("i"), t(name)));
  }
  const training = new Map(run.curve.training);
  const cells = (kind, values) => element("tr", {}, ...values.map(value => element(kind, { textContent: value })));
  at("curve-table").append(element("thead", {}, cells("th", [t("step"), t("training"), t("validation")])),
    element("tbody", {}, ...run.curve.validation.map(([step, loss]) => cells("td", [number.format(step), training.has(step) ? training.get(step).toFixed(3) : "–", loss.toFixed(3)]))));
  new ResizeObserver(drawCurve).observe(at("curve"));
}

async function start() {
  if (matchMedia("(max-width: 46rem)").matches) for (const box of document.querySelectorAll("aside details")) box.open = false;
  try {
    run = await (await online(fetch("/run"))).json();
  } catch (error) {
    at("problem").hidden = false;
    at("problem").textContent = error.message;
    return;
  }
  document.title = `${run.model} · Inkstone 砚`;
  at("name").textContent = run.model;
  at("about").textContent = story();
  at("report").hidden = !run.has_report;
  at("report").href = `/report?language=${language}`;
  showFacts();
  showCurve();
  startWriting();
  if (run.has_chat) startChat();
}

start();
