// Chat view, of models whose tokenizer has a chat template.
const border = element("li", { className: "note" });  // above the first message that the model still reads
let messages = [];

function addTurn(role, text) {
  const body = element("p", { className: role === "assistant" ? "model-text" : "", textContent: text });
  const turn = element("li", { className: role }, element("h3", { textContent: t(role === "user" ? "you" : "answer") }), body);
  if (isChinese(text)) turn.lang = "zh-Hans";
  at("turns").append(turn);
  return body;
}

async function chat(question, signal) {
  const { seed, ...values } = settings();
  const pace = pacer(at("chat-pace"));
  const system = at("system").value.trim();
  const sent = [...messages, { role: "user", content: question }];
  const asked = addTurn("user", question), answer = addTurn("assistant", "");
  let text = "", ending = "";
  at("message").value = "";
  try {
    const body = { ...values, seed, messages: [...(system ? [{ role: "system", content: system }] : []), ...sent] };
    for await (const event of stream("/v1/chat/completions", body, signal)) {
      if (event.dropped_messages) {
        border.textContent = t("left_out", { size: number.format(run.block_size) });
        at("turns").querySelectorAll(".user, .assistant")[event.dropped_messages].before(border);
      }
      for (const choice of event.choices) {
        text += choice.delta.content;
        answer.textContent = text;
        if (choice.finish_reason === "length") ending = t("cut");
        pace(ending);
      }
      if (event.usage) pace(ending, event.usage.completion_tokens);
    }
    if (!text) throw new PlainError(t("error_nothing"));
  } finally {
    if (text) {
      messages = [...sent, { role: "assistant", content: text }];
    } else {  // the question was not answered: give it back
      asked.parentNode.remove();
      answer.parentNode.remove();
      at("message").value = question;
    }
  }
}

at("chat-form").addEventListener("submit", event => {
  event.preventDefault();
  whileStoppable(at("send"), "send", at("chat-pace"), async signal => {
    const question = at("message").value.trim();
    if (!question) throw new PlainError(t("error_empty"));
    await chat(question, signal);
    at("message").focus();
  });
});

at("new-chat").addEventListener("click", () => {
  at("send").controller?.abort();
  messages = [];
  at("turns").replaceChildren();
  at("chat-pace").textContent = "";
  at("message").focus();
});

onModifiedEnter(at("message"), at("chat-form"));

function selectView(view) {
  for (const name of ["chat", "write"]) {
    at(name).hidden = name !== view;
    at(`tab-${name}`).setAttribute("aria-selected", name === view);
    at(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  at("system-field").hidden = view !== "chat";
}

function startChat() {
  at("views").hidden = false;
  for (const name of ["chat", "write"]) {
    at(name).setAttribute("role", "tabpanel");
    at(name).setAttribute("aria-labelledby", `tab-${name}`);
    at(`tab-${name}`).addEventListener("click", () => selectView(name));
    at(`tab-${name}`).addEventListener("keydown", event => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = name === "chat" ? "write" : "chat";
      selectView(other);
      at(`tab-${other}`).focus();
    });
  }
  showChips(at("questions"), at("message"), at("send"));
  selectView("chat");
}
