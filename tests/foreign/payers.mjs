// Each client pays for the URL on the command line once, and what came of it is a line of JSON.
// The environment names its key, and the token it pays in. Names of clients follow the URL.
import { performance } from "node:perf_hooks";
import { privateKeyToAccount } from "viem/accounts";

const [url, ...names] = process.argv.slice(2);
const { PAYER_KEY, TOKEN, TOKEN_NAME, TOKEN_VERSION, CHAIN_ID } = process.env;
const account = privateKeyToAccount(PAYER_KEY);

async function told(answer) {
  return {
    status: answer.status,
    text: await answer.text(),
    receipt: answer.headers.get("payment-receipt"),
    response: answer.headers.get("payment-response"),
  };
}

const CLIENTS = {
  async mppx() {
    const { Mppx, evm } = await import("mppx/client");
    const method = evm({
      account,
      authorization: { name: TOKEN_NAME, version: TOKEN_VERSION },
      currencies: [TOKEN],
      networks: [Number(CHAIN_ID)],
    });
    const client = Mppx.create({ methods: [method], polyfill: false });
    return told(await client.fetch(url));
  },
  async x402() {
    const [{ wrapFetchWithPayment, x402Client }, { ExactEvmScheme }] = await Promise.all([
      import("@x402/fetch"),
      import("@x402/evm/exact/client"),
    ]);
    const client = new x402Client().setSpendControls({ allowedAssets: true });
    client.register("eip155:*", new ExactEvmScheme(account));
    return told(await wrapFetchWithPayment(fetch, client)(url));
  },
};

for (const name of names.length ? names : Object.keys(CLIENTS)) {
  const began = performance.now();
  const line = { client: name };
  try {
    Object.assign(line, await CLIENTS[name]());
  } catch (error) {
    line.error = { name: error.name, message: error.message };
  }
  line.seconds = (performance.now() - began) / 1000;
  console.log(JSON.stringify(line));
}
