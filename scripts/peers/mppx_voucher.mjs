/**
 * mppx's session: one voucher from its header to its receipt's header, in memory.
 *
 * Runs in an environment of its own, made by scripts/bench; prints microseconds a voucher, run by
 * run, as JSON. The channel is put into its store as its own code would have opened it, and what
 * was last read of the chain never grows stale, so that no node is asked.
 */

import { Challenge, Credential, Store } from 'mppx'
import { Mppx, tempo } from 'mppx/server'
import { Session } from 'mppx/tempo'
import { createClient, custom } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'

const { Channel, Protocol, Voucher } = Session.Precompile

const CHAIN_ID = 42431
const PRICE = 25n
const RUN = 50
const URL = 'https://api.example.com/paid'
const payer = privateKeyToAccount(`0x${'11'.repeat(32)}`)
const [payee, token] = ['b2', 'c3'].map((pair) => `0x${pair.repeat(20)}`)
const escrow = Protocol.tip20ChannelEscrow
const client = createClient({
  chain: { id: CHAIN_ID, name: 'constant', nativeCurrency: {}, rpcUrls: {} },
  transport: custom({
    request() {
      throw new Error('no voucher asks a node')
    },
  }),
})
const source = `did:pkh:eip155:${CHAIN_ID}:${payer.address}`
const store = Store.memory()
const zero32 = `0x${'00'.repeat(32)}`
const descriptor = {
  payer: payer.address,
  payee,
  operator: `0x${'00'.repeat(20)}`,
  token,
  salt: zero32,
  authorizedSigner: payer.address,
  expiringNonceHash: zero32,
}
const channelId = Channel.computeId({ ...descriptor, chainId: CHAIN_ID, escrow })
const sign = (amount) =>
  Voucher.signVoucher(client, payer, { channelId, cumulativeAmount: amount }, escrow, CHAIN_ID)

await store.put(channelId, {
  ...descriptor,
  backend: 'precompile',
  chainId: CHAIN_ID,
  channelId,
  closeRequestedAt: 0n,
  createdAt: new Date().toISOString(),
  deposit: 2n ** 80n,
  descriptor,
  escrowContract: escrow,
  finalized: false,
  highestVoucher: null,
  highestVoucherAmount: 0n,
  settledOnChain: 0n,
  spent: 0n,
  units: 0,
})
const server = Mppx.create({
  methods: [
    tempo.session({
      amount: String(PRICE),
      chainId: CHAIN_ID,
      channelStateTtl: Number.MAX_SAFE_INTEGER,
      currency: token,
      decimals: 0,
      getClient: () => client,
      recipient: payee,
      store,
      unitType: 'request',
    }),
  ],
  realm: 'api.example.com',
  secretKey: "a benchmark's secret of thirty-two bytes",
})
const sell = server.session({ amount: String(PRICE), unitType: 'request' })

const unpaid = await sell(new Request(URL))
const challenge = Challenge.fromResponse(unpaid.challenge)
const requests = []
for (let number = 1n; number <= BigInt(process.argv[2]); number++) {
  const payload = {
    action: 'voucher',
    channelId,
    cumulativeAmount: String(PRICE * number),
    descriptor,
    signature: await sign(PRICE * number),
  }
  const authorization = Credential.serialize(Credential.from({ challenge, payload, source }))
  requests.push(new Request(URL, { headers: { authorization } }))
}
const content = new Response('x')
const times = []
for (let start = 0; start < requests.length; start += RUN) {
  const run = requests.slice(start, start + RUN)
  const began = performance.now()
  for (const request of run) {
    const answer = await sell(request)
    if (answer.status !== 200 || !answer.withReceipt(content).headers.get('payment-receipt')) {
      throw new Error(`not taken: ${await answer.challenge?.text()}`)
    }
  }
  times.push(((performance.now() - began) / run.length) * 1000)
}
console.log(JSON.stringify(times))
