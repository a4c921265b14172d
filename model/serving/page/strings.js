// Texts of the page in English and Chinese. `t` is the text of a key, with {name} replaced by a value.
const STRINGS = {
  report: ["Report", "训练报告"],
  chat: ["Chat", "对话"],
  write: ["Write", "续写"],
  stop: ["Stop", "停止"],
  prompt: ["Begin with", "开头"],
  beginnings: ["Beginnings to try", "可以试试的开头"],
  questions: ["Questions to try", "可以问问看"],
  continue: ["Continue", "接着写"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  tokens: ["Tokens", "逐词元查看"],
  history: ["Earlier texts", "写过的文字"],
  reuse: ["Use again", "沿用设置"],
  remove: ["Remove", "删除"],
  message: ["Your message", "你的消息"],
  send: ["Send", "发送"],
  new_chat: ["New chat", "新对话"],
  you: ["You", "你"],
  answer: ["Model", "模型"],
  settings: ["Sampling", "采样设置"],
  system: ["Instructions", "系统提示"],
  temperature: ["Temperature", "温度"],
  top_p: ["Top-p", "Top-p"],
  min_p: ["Min-p", "Min-p"],
  max_tokens: ["Length, in tokens", "长度（词元）"],
  seed: ["Seed", "随机种子"],
  random: ["random", "随机"],
  model: ["Model", "模型"],
  curve: ["How it learned", "学习曲线"],
  curve_unit: [
    "Bits per character by training step; lower is better. Dotted lines: simple models",
    "每字符比特数随训练步数的变化，越低越好。点线：简单模型",
  ],
  numbers: ["Numbers", "数值"],
  step: ["Step", "步数"],
  training: ["training", "训练"],
  validation: ["validation", "验证"],
  tokens_help: [
    "The redder a token, the less likely the model thought it. Point at one, tap it, or use the arrow keys.",
    "颜色越红，模型认为这个词元出现的可能性越小。把鼠标移上去、点一下，或用方向键查看。",
  ],
  likely: ["likely", "很可能"],
  unlikely: ["unlikely", "不太可能"],
  alternatives: ["Likeliest here", "此处最可能的词元"],
  example: ["Written at the end of the training, step {step}", "训练结束时（第 {step} 步）写的"],
  waiting: ["waiting…", "请稍候…"],
  count: ["{count} tokens", "{count} 个词元"],
  count_one: ["1 token", "1 个词元"],
  rate: ["{rate} tokens/s", "{rate} 词元/秒"],
  end: ["end of text", "文本结束"],
  stopped: ["stopped", "已停止"],
  left_out: [
    "The model reads {size} tokens at a time. It no longer sees what is above this line.",
    "模型一次只能读 {size} 个词元，这条线以上的内容它已经看不到了。",
  ],
  cut: ["cut at the length limit", "到达长度上限"],
  key: ["Key of this server", "本服务器的密钥"],
  small: ["A model with {parameters} parameters", "一个 {parameters}参数的模型"],
  trained: [", trained from scratch on {text}", "，用 {text} 从头训练"],
  tuned: [", tuned on {text}", "，用 {text} 微调"],
  characters: [" ({count} characters)", "（{count} 字）"],
  finished: [" and finished on {date} after {time}", "，{date}完成，用时 {time}"],
  finished_only: [" and finished on {date}", "，{date}完成"],
  minutes: ["{count} min", " {count} 分钟"],
  hours: ["{count} h", " {count} 小时"],
  score: ["On text it had not seen it needs {bits} bits per character", "在没见过的文字上，每字符 {bits} 比特"],
  score_answers: ["On answers it had not seen it needs {bits} bits per character", "在没见过的回答上，每字符 {bits} 比特"],
  better: ["better than {name} ({bits})", "优于{name}（{bits}）"],
  worse: ["not as good as {name} ({bits})", "不如{name}（{bits}）"],
  comma: [", ", "，"],
  colon: [": ", "："],
  period: [". ", "。"],
  uniform: ["random guesses", "随机猜测"],
  unigram: ["letter frequency", "一元模型"],
  bigram: ["counting pairs", "二元模型"],
  ngram: ["counting n-grams", "字符 n 元模型"],
  zstd: ["the compressor zstd", "zstd 压缩"],
  fact_parameters: ["Parameters", "参数量"],
  fact_steps: ["Training steps", "训练步数"],
  fact_vocabulary: ["Vocabulary", "词表大小"],
  fact_tokenizer: ["Tokenizer", "分词器"],
  fact_score: ["Bits per character", "每字符比特数"],
  fact_run: ["Key", "编号"],
  unmeasured: ["not measured", "未测量"],
  error_seed: ["The seed is a whole number, such as 7.", "随机种子是一个整数，例如 7。"],
  error_prompt: ["The text is too long: at most 50,000 characters.", "文字太长：最多 50,000 个字符。"],
  error_context: ["The message is too long for this model.", "这条消息太长，模型读不下。"],
  error_empty: ["Write a message first.", "请先写一条消息。"],
  error_nothing: ["The model answered nothing. Try again.", "模型什么也没回答，请再试一次。"],
  error_busy: ["The server is busy. Try again in a moment.", "服务器正忙，请稍后再试。"],
  error_key: ["The key is wrong.", "密钥不对。"],
  error_stopping: ["The server is stopping.", "服务器正在停止。"],
  error_network: ["The server does not answer. Is it still running?", "服务器没有应答。它还在运行吗？"],
  error_server: ["The server could not write this text: {message}", "服务器没能写出这段文字：{message}"],
};

const at = id => document.getElementById(id);
const memory = {  // of this browser; it may be switched off
  read(name) { try { return JSON.parse(localStorage.getItem(`inkstone:${name}`)); } catch { return null; } },
  write(name, value) { try { localStorage.setItem(`inkstone:${name}`, JSON.stringify(value)); } catch { /* not saved */ } },
};
const language = memory.read("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
const number = new Intl.NumberFormat(language);

function t(key, values = {}) {
  return STRINGS[key][language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
for (const node of document.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
at("language").textContent = language === "zh" ? "English" : "中文";
at("language").lang = language === "zh" ? "en" : "zh-Hans";
at("language").addEventListener("click", () => {
  memory.write("language", language === "zh" ? "en" : "zh");
  location.reload();
});
