// Writing view: a text and its continuation, beginnings to try, and the texts of earlier.
const HISTORY = 40;  // texts
let shown = null;  // { id, prompt, text, tokens, settings }; no settings: the sample of the training
let texts = [];  // the newest first

function isChinese(text) {
  return /\p{Script=Han}/u.test(text);
}

function show(text, caption = "") {
  shown = text;
  at("result").hidden = false;
  at("caption").textContent = caption;
  at("caption").hidden = !caption;
  at("prompt-text").textContent = text.prompt;
  at("sheet").lang = isChinese(text.prompt + text.text) ? "zh-Hans" : "en";
  at("tokens").hidden = !text.tokens;
  at("continue").hidden = run.tokenizer.kind === "integers";
  showTokens(showsTokens && Boolean(text.tokens));
}

async function write(start, signal) {
  const values = start.settings ?? settings();
  const pace = pacer(at("pace"));
  const text = { ...start, settings: values };
  show(text);
  let ending = "";
  try {
    const prompt = start.isContinued ? start.prompt + start.text : start.input;
    for await (const event of stream("/v1/completions", { ...values, prompt, logprobs: CANDIDATES }, signal)) {
      for (const choice of event.choices) {
        const tokens = tokensOf(choice.text, choice.logprobs);
        text.tokens.push(...tokens);
        text.text += choice.text;
        appendTokens(tokens);
        if (choice.finish_reason === "stop") ending = t("end");
        pace(ending);
      }
      if (event.usage) pace(ending, event.usage.completion_tokens);
    }
  } finally {
    if (text.text) remember(text);
  }
}

at("form").addEventListener("submit", event => {
  event.preventDefault();
  const input = at("prompt").value;
  const prompt = run.tokenizer.kind === "integers" ? `${input} → ` : input;
  whileStoppable(at("go"), "write", at("pace"), signal =>
    write({ id: Date.now(), input, prompt, text: "", tokens: [] }, signal));
});

// The next part of a text gets the settings of now, and a seed of its own.
at("continue").addEventListener("click", () => {
  if (at("go").controller) return;
  const { id, prompt, text, tokens } = shown;
  whileStoppable(at("go"), "write", at("pace"), signal =>
    write({ id: shown.settings ? id : Date.now(), prompt, text, tokens: tokens ?? [{ text }], isContinued: true }, signal));
});

at("copy").addEventListener("click", () => copy(shown.prompt + shown.text, at("notice")));
onModifiedEnter(at("prompt"), at("form"));

function remember({ id, prompt, text, settings: values }) {
  texts = [{ id, prompt, text, settings: values }, ...texts.filter(other => other.id !== id)].slice(0, HISTORY);
  memory.write(`texts:${run.model}`, texts);
  showHistory();
}

function describe(values) {
  const parts = [`${t("temperature")} ${values.temperature}`, `${t("min_p")} ${values.min_p}`];
  if (values.top_p < 1) parts.push(`${t("top_p")} ${values.top_p}`);
  return [...parts, `${t("seed")} ${values.seed}`].join(" · ");
}

function showHistory() {
  const earlier = texts.filter(text => text.id !== shown?.id);
  at("history").hidden = !earlier.length;
  at("texts").replaceChildren(...earlier.map(text => {
    const button = (label, action) => {
      const node = element("button", { type: "button", className: "link", textContent: t(label) });
      node.addEventListener("click", () => action(node));
      return node;
    };
    return element("li", {},
      element("p", { lang: isChinese(text.prompt + text.text) ? "zh-Hans" : "en" },
        element("span", { textContent: text.prompt }), element("span", { className: "model-text", textContent: text.text })),
      element("footer", {}, element("small", { textContent: describe(text.settings) }),
        button("reuse", () => reuse(text)),
        button("copy", node => copy(text.prompt + text.text, node).then(() => setTimeout(() => { node.textContent = t("copy"); }, 2000))),
        button("remove", () => {
          texts = texts.filter(other => other.id !== text.id);
          memory.write(`texts:${run.model}`, texts);
          showHistory();
          at("prompt").focus();
        })));
  }));
}

function reuse(text) {
  at("prompt").value = text.prompt.replace(/ → $/, "");
  for (const slider of sliders) {
    slider.value = text.settings[slider.id];
    showSlider(slider);
  }
  at("seed").value = text.settings.seed;
  at("prompt").focus();
}

// Texts to choose; each fills `area` and presses `button`.
function showChips(box, area, button) {
  box.hidden = !run.beginnings.length;
  box.append(...run.beginnings.map(text => {
    const chip = element("button", { type: "button", textContent: text, lang: isChinese(text) ? "zh-Hans" : "en" });
    chip.addEventListener("click", () => {
      if (button.controller) return;
      area.value = text;
      button.form.requestSubmit();
    });
    return chip;
  }));
}

function startWriting() {
  texts = memory.read(`texts:${run.model}`) ?? [];
  at("prompt").lang = run.sample && !isChinese(run.sample.prompt + run.sample.text) ? "en" : "zh-Hans";
  if (!run.has_chat) showChips(at("beginnings"), at("prompt"), at("go"));
  if (run.sample) {
    const { prompt, text, step } = run.sample;
    show({ prompt, text, tokens: null }, t("example", { step: number.format(step) }));
  }
  showHistory();
}
