// Clients of others, from npm. The one that the command line names pays for its URL once; what it
// was answered is a line of JSON. Standard input has its key and the token that it pays in, as JSON:
// see `PayerTerms` in clients.py.
import { json } from "node:stream/consumers";
import { privateKeyToAccount } from "viem/accounts";

const [name, url] = process.argv.slice(2);
const terms = await json(process.stdin);
const account = privateKeyToAccount(terms.key);

async function payByMppx(options) {
  const { Mppx, evm } = await import("mppx/client");
  const method = evm({
    account,
    authorization: { name: terms.token_name, version: terms.token_version },
    currencies: [terms.token],
    networks: [terms.chain_id],
  });
  const client = Mppx.create({ methods: [method], polyfill: false, ...options });
  return client.fetch(url);
}

const CLIENTS = {
  mppx: () => payByMppx({}),
  "mppx-x402": () =>
    payByMppx({
      orderChallenges: (offers) =>
        offers.filter(({ challenge }) => challenge.request.scheme === "exact"),
    }),
  async "x402-npm"() {
    const [{ wrapFetchWithPayment, x402Client }, { ExactEvmScheme }] = await Promise.all([
      import("@x402/fetch"),
      import("@x402/evm/exact/client"),
    ]);
    const client = new x402Client().setSpendControls({ allowedAssets: true });
    client.register("eip155:*", new ExactEvmScheme(account));
    return wrapFetchWithPayment(fetch, client)(url);
  },
};

const line = {};
try {
  const answer = await CLIENTS[name]();
  line.status = answer.status;
  line.text = await answer.text();
  line.receipt = answer.headers.get("payment-receipt");
  line.response = answer.headers.get("payment-response");
} catch (error) {
  line.error = `${error.name}: ${error.message}`;
}
console.log(JSON.stringify(line));
