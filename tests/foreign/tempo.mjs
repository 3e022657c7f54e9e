// Pays a server of Tempo's session, version 1, with mppx. The command line has the chain's URL, the
// escrow, the payer's key, the greatest deposit in whole tokens, and what to do, step by step; each
// step answers with a line of JSON.
import { tempo } from "mppx/client";
import { sessionLegacy, sessionLegacyManager } from "mppx/client";
import { createClient, encodeFunctionData, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { prepareTransactionRequest, signTransaction } from "viem/actions";
import { Abis } from "viem/tempo";
import { tempo as chain } from "viem/tempo/chains";

const [rpc, escrowContract, key, maxDeposit, ...steps] = process.argv.slice(2);
const account = privateKeyToAccount(key);
// Anvil takes expiring transactions with nonce 0 only, where viem gives them a random one, and its
// estimate of gas leaves out what Tempo charges for new storage.
const [prepare, options] = [chain.prepareTransactionRequest].flat();
const local = {
  ...chain,
  id: 31337,
  prepareTransactionRequest: [
    (request, phase) => prepare({ ...request, nonce: 0, gas: 5_000_000n }, phase),
    options,
  ],
};
const client = createClient({ account, chain: local, transport: http(rpc) });
const settings = { account, client, getClient: () => client, escrowContract, maxDeposit };
const session = sessionLegacyManager(settings);
const TOP_UP = [
  {
    type: "function",
    name: "topUp",
    inputs: [{ type: "bytes32" }, { type: "uint256" }],
    outputs: [],
    stateMutability: "nonpayable",
  },
];
let challenge;

function shown(receipt) {
  return receipt === null || receipt === undefined ? null : receipt;
}

const STEPS = {
  async fetch(url) {
    const answer = await session.fetch(url);
    challenge = answer.challenge;
    return { status: answer.status, text: await answer.text(), receipt: shown(answer.receipt) };
  },
  async sse(url) {
    const data = [];
    let receipt = null;
    const events = await session.sse(url, { onReceipt: (one) => (receipt = one) });
    for await (const event of events) data.push(event);
    return { data, receipt: shown(receipt) };
  },
  // mppx signs a top-up as its server expects it, given the transaction.
  async topUp(url, amount) {
    const token = challenge.request.currency;
    const additional = BigInt(amount);
    const prepared = await prepareTransactionRequest(client, {
      account,
      calls: [
        {
          to: token,
          data: encodeFunctionData({
            abi: Abis.tip20,
            functionName: "approve",
            args: [escrowContract, additional],
          }),
        },
        {
          to: escrowContract,
          data: encodeFunctionData({
            abi: TOP_UP,
            functionName: "topUp",
            args: [session.channelId, additional],
          }),
        },
      ],
      feeToken: token,
      nonceKey: "expiring",
      validBefore: Math.floor(Date.now() / 1000) + 25,
    });
    const transaction = await signTransaction(client, prepared);
    const method = sessionLegacy({ ...settings, maxDeposit: undefined });
    const authorization = await method.createCredential({
      challenge,
      context: {
        action: "topUp",
        channelId: session.channelId,
        transaction,
        additionalDepositRaw: String(amount),
      },
    });
    const answer = await fetch(url, { method: "POST", headers: { authorization } });
    return { status: answer.status, text: await answer.text() };
  },
  async close() {
    const receipt = await session.close();
    return { receipt: shown(receipt) };
  },
};

for (const step of steps) {
  const [name, ...values] = step.split(" ");
  try {
    console.log(JSON.stringify({ step: name, ...(await STEPS[name](...values)) }));
  } catch (error) {
    console.log(JSON.stringify({ step: name, error: `${error.name}: ${error.message}` }));
    break;
  }
}
