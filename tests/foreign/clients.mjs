// Each client asks the URL on the command line once, and what it makes of the answer is a line of
// JSON: the text it returned, or its error. Names of clients follow the URL; none: every one.
import { performance } from "node:perf_hooks";

const [base, ...names] = process.argv.slice(2);
const MODEL = "any";
const HELLO = [{ role: "user", content: "hello" }];

const CLIENTS = {
  async openai() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: process.env.API_KEY ?? "none" });
    const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO });
    return answer.choices[0].message.content;
  },
  async ai() {
    const [{ generateText }, { createOpenAI }] = await Promise.all([
      import("ai"),
      import("@ai-sdk/openai"),
    ]);
    const provider = createOpenAI({ baseURL: `${base}/v1`, apiKey: process.env.API_KEY ?? "none" });
    return (await generateText({ model: provider.chat(MODEL), prompt: "hello" })).text;
  },
  async mppx() {
    const [{ Mppx, tempo }, { privateKeyToAccount, generatePrivateKey }] = await Promise.all([
      import("mppx/client"),
      import("viem/accounts"),
    ]);
    const account = privateKeyToAccount(generatePrivateKey());
    const client = Mppx.create({ methods: [tempo({ account })], polyfill: false });
    const answer = await client.fetch(`${base}/joke`);
    return `${answer.status} ${await answer.text()}`;
  },
  async x402() {
    const { wrapFetchWithPayment, x402Client } = await import("@x402/fetch");
    const answer = await wrapFetchWithPayment(fetch, new x402Client())(`${base}/joke`);
    return `${answer.status} ${await answer.text()}`;
  },
};

for (const name of names.length ? names : Object.keys(CLIENTS)) {
  const began = performance.now();
  const line = { client: name };
  try {
    line.text = await CLIENTS[name]();
  } catch (error) {
    line.error = { name: error.name, message: error.message };
    for (const field of ["status", "statusCode", "code", "type", "responseBody"]) {
      if (error[field] !== undefined) line.error[field] = error[field];
    }
  }
  line.seconds = (performance.now() - began) / 1000;
  console.log(JSON.stringify(line));
}
