// One reply: its verdict, its cost, its tokens as they arrive, and the chart of its bins.

import { Problem } from "./api.js";
import { drawChart } from "./chart.js";
import { create } from "./dom.js";
import { classifyToken, describeBin, describeCost, describeToken, describeVerdict, splitBins } from "./trace.js";

const LEGEND = [
  ["matched", "accepted", "the draft’s own token"],
  ["corrected intersection", "corrected", "in intersection, for usefulness"],
  ["corrected union", "corrected", "in union, for safety"],
];

export class Card {
  // `guarded`: whether SSD decodes, and not the target alone.
  constructor(title, guarded, prefill) {
    this.title = title;
    this.tokens = [];
    this.text = "";
    this.outcome = ""; // how the reply ended, in words
    this.problem = null;
    this.verdict = create("p", { class: "verdict" }, "Waits for its first token …");
    this.cost = create("p", { class: "cost" });
    this.said = create("div", { class: "said", tabindex: 0, role: "group", "aria-label": `Reply: ${title}` });
    if (prefill) this.said.append(create("span", { class: "begun", title: "the prefill" }, prefill));
    this.element = create("article", { class: "card" }, create("h3", {}, title), this.verdict, this.cost);
    if (guarded) this.element.append(drawLegend());
    this.element.append(this.said);
    if (guarded) this.element.append(this.makeChart());
  }

  makeChart() {
    this.chart = create("div", { class: "bars" });
    this.sentence = create("p", { class: "hint" });
    const axis = create("div", { class: "axis", "aria-hidden": "true" });
    axis.append(...["1", "½", "0"].map((at) => create("span", {}, at)));
    this.fold = create("details", { open: "" }, create("summary", {}, "Match ratio of each bin"));
    const key = create("ul", { class: "legend" });
    for (const [look, words] of [["bar intersection", "in intersection"], ["bar union", "in union"], ["line", "threshold"]]) {
      key.append(create("li", {}, create("i", { class: look }), words));
    }
    this.fold.append(key, create("div", { class: "plot" }, axis, this.chart), this.sentence);
    return this.fold;
  }

  // Show the reply of `open()`, which gives the choices of a stream, until it ends, fails or is stopped.
  // The function `opened` is called once the server has accepted the request.
  async run(open, opened) {
    try {
      const choices = await open();
      opened();
      for await (const choice of choices) this.add(choice);
    } catch (error) {
      this.end(error);
    }
    this.show();
  }

  add({ delta, finish_reason, safedraft }) {
    this.text += delta.content ?? "";
    for (const token of safedraft?.tokens ?? []) {
      this.tokens.push(token);
      this.said.append(create("span", { class: classifyToken(token), "data-details": describeToken(token) }, token.text));
    }
    if (finish_reason) {
      this.statistics = safedraft.statistics;
      this.ended = finish_reason;
      this.outcome = describeVerdict(safedraft.verdict, this.tokens);
      this.element.dataset.verdict = safedraft.verdict;
    }
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  // The server was not asked for this reply.
  skip() {
    this.outcome = "Not asked";
    this.show();
  }

  end(error) {
    if (error.name === "AbortError") this.outcome = "Stopped";
    else {
      this.problem = error instanceof Problem ? error : new Problem(`The page failed: ${error.message}`);
      this.outcome = this.tokens.length ? "Broken off" : "No reply";
    }
  }

  show() {
    cancelAnimationFrame(this.frame);
    this.frame = undefined;
    const running = this.tokens.length ? "Decoding …" : "Waits for its first token …";
    this.verdict.textContent = this.outcome || running;
    const parts = describeCost(this.tokens, this.statistics ?? null);
    if (this.ended === "length") parts.push("cut at its limit of tokens");
    if (this.problem) parts.push(this.problem.message);
    this.cost.textContent = parts.join(" · ");
    if (!this.chart) return;
    const bins = splitBins(this.ended === "stop" ? this.tokens.slice(0, -1) : this.tokens); // an end token has no bin
    const full = bins.filter((bin) => bin.full);
    this.chart.replaceChildren(drawChart(bins));
    this.sentence.textContent = full.length ? `Bin ${full.length}: ${describeBin(full.at(-1))}.` : "No bin is full yet.";
  }
}

function drawLegend() {
  const legend = create("ul", { class: "legend", "aria-label": "Legend of the tokens" });
  for (const [look, sample, meaning] of LEGEND) {
    legend.append(create("li", {}, create("span", { class: `token ${look}` }, sample), ` ${meaning}`));
  }
  return legend;
}
