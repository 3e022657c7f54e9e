"""Every bound on what a peer, a node or a stranger can make the process use.

A name ends with its unit. What exceeds a bound is refused, waits, or is deleted as the oldest. Only
text for a log or an error is cut. docs/guide/operating.md says it of each.
"""

from typing import Final

# Amounts are `uint128` on the wire and in the escrow's interface. The escrow stores 88 bits and
# refuses a larger deposit, so it could never pay a voucher above that, and the engine refuses it.
AMOUNT_MAX: Final = 2**128 - 1
AMOUNT_DIGITS_MAX: Final = 39
SAFE_INTEGER_MAX: Final = 2**53 - 1

# Wire. The parsers check these before they decode anything.
AUTHORIZATION_BYTES_MAX: Final = 64 * 1024
CHALLENGE_BYTES_MAX: Final = 64 * 1024
REQUEST_PARAM_BYTES_MAX: Final = 16 * 1024
RECEIPT_BYTES_MAX: Final = 16 * 1024
JSON_DEPTH_MAX: Final = 16
JSON_WINDOW_BYTES: Final = 64 * 1024
REQUEST_ELEMENTS_MAX: Final = 65_536
CHALLENGES_PER_RESPONSE_MAX: Final = 32
PROBLEM_BYTES_MAX: Final = 64 * 1024
EVENT_BYTES_MAX: Final = 1024 * 1024
DECODED_PIECE_BYTES_MAX: Final = 64 * 1024
DECODED_AHEAD_BYTES_MAX: Final = 1024 * 1024
DECODED_RATIO_MAX: Final = 100
ACCEPT_PAYMENT_RANGES_MAX: Final = 32
DESCRIPTION_CHARS_MAX: Final = 1024
IDEMPOTENCY_KEY_BYTES_MAX: Final = 255
ROUTE_BYTES_MAX: Final = 2048
# A tariff: how many rates, how long their names, how fine a price, how many units of a request.
RATES_MAX: Final = 32
KIND_CHARS_MAX: Final = 64
RATE_PER_MAX: Final = 10**15
USAGE_MAX: Final = 2**53 - 1
PRICE_TEXT_CHARS_MAX: Final = 128
# How much of an unknown Content-Encoding a refusal quotes: one line of a log.
CODINGS_CHARS_MAX: Final = 64

# Connections to a gateway: what one may cost before the peer is known.
CONNECTIONS_MAX: Final = 4096
HEAD_S_MAX: Final = 10
BODY_S_MAX: Final = 60
READ_S_MAX: Final = 30
# asyncio accepts this many connections in one turn, before the bound above is checked.
ACCEPTED_TOGETHER_MAX: Final = 16
# A credential of the greatest size, and the cookies that a browser sends beside it.
HEAD_BYTES_MAX: Final = AUTHORIZATION_BYTES_MAX + 16 * 1024
# Of one connection in one turn of asyncio's loop, so that the other connections get theirs. uvloop
# reads into a buffer of its own, of 256,000 bytes.
READ_BYTES_MAX: Final = 64 * 1024
HEAD_LINES_MAX: Final = 256
HEAD_WORDS_MAX: Final = 2048
TARGET_BYTES_MAX: Final = 8 * 1024
CHUNKS_SMALL_MAX: Final = 256
CHUNK_BYTES_MEAN_MIN: Final = 256

# Signatures. A key's has 65 bytes; an ERC-1271 wallet's is passed through up to a cap.
SIGNATURE_BYTES: Final = 65
WALLET_SIGNATURE_BYTES_MAX: Final = 4096

# Challenges.
SECRET_BYTES_MIN: Final = 32
GENUINE_CHALLENGES_MAX: Final = 4096
CHALLENGE_LIFETIME_S: Final = 300

# Escrow. The draft recommends a grace period of ten minutes; shorter ones are refused.
GRACE_PERIOD_S_MIN: Final = 600

# Channels.
RESERVATIONS_PER_CHANNEL_MAX: Final = 64
RESERVATION_STEP_UNITS: Final = 32
RESERVATION_LEASE_S: Final = 60
STREAM_PAUSE_S: Final = 5
STREAM_PAUSE_S_MAX: Final = 30
CLOSE_WAIT_S_MAX: Final = 10
CLOSE_TIMEOUT_S: Final = 30
VOUCHERS_PER_SECOND_MAX: Final = 10
VERIFYING_THREADS_MAX: Final = 4

# Ledger.
COMMIT_BATCH_MAX: Final = 512
COMMIT_QUEUE_MAX: Final = 8192
CHANNELS_CACHED_MAX: Final = 262_144
CACHE_TRUSTED_S: Final = 0.25
LEDGER_POLL_S: Final = 0.05
LEDGER_REMOTE_POLL_S: Final = 1.0
COMMIT_TRIES_MAX: Final = 5
LEDGER_BUSY_S: Final = 5.0
CLOCK_SKEW_S_MAX: Final = 5
CHANNELS_PER_PAGE_MAX: Final = 1000
PRUNE_BATCH_MAX: Final = 500
PRUNE_CHANNELS_MAX: Final = 50
WATCHES_MAX: Final = 100_000
MARKER_ENTRIES: Final = 256
MARKER_SYNC_S: Final = 1.0
LEDGER_LOOK_S: Final = 60.0
# Characters of a route or a model's name in the accounts; the rest is cut.
CHARGE_TEXT_CHARS_MAX: Final = 256
CHARGES_PER_PAGE_MAX: Final = 1000
CHARGES_DAYS: Final = 400
STORED_RESPONSE_BYTES_MAX: Final = 1024 * 1024
IDEMPOTENCY_LIFETIME_S: Final = 24 * 3600
STORED_RESPONSES_PER_CHANNEL_MAX: Final = 1000
STORED_BYTES_PER_CHANNEL_MIN: Final = 1024 * 1024
STORED_BYTES_PER_BASE_UNIT: Final = 64
STORED_BYTES_PER_CHANNEL_MAX: Final = 64 * 1024 * 1024
STORED_BYTES_MAX: Final = 1024 * 1024 * 1024

# Paths. A client encodes one once; more layers are decoded in case a framework decodes them.
PATH_DECODINGS_MAX: Final = 8
UNICODE_PATH_CHARS_MAX: Final = 1024

# Engine. What strangers can cause is bounded in number, memory and time.
RATE_KEYS_MAX: Final = 65_536
FACT_AGES_MAX: Final = 65_536
FACT_TTL_S: Final = 5
FACT_AGE_S_MAX: Final = 60
CHAIN_CHECKS_MAX: Final = 64
CHAIN_CHECKS_PER_SOURCE_MAX: Final = 8
CONTRACT_QUESTIONS_MAX: Final = 50
CONTRACT_QUESTIONS_PER_SOURCE_MAX: Final = 5
CODELESS_SIGNERS_MAX: Final = 16_384
CODELESS_TRUSTED_S: Final = 60
TRANSACTION_WAIT_S_MAX: Final = 2
SPONSORED_DEPOSIT_MIN: Final = 10_000
SPONSORED_PER_SOURCE_MAX: Final = 20
SPONSORED_GAS_MAX: Final = 600_000
SPONSORED_PERIOD_S: Final = 3600
AUTHORIZATION_MARGIN_S: Final = 60
CHARGE_AMOUNT_MIN: Final = 10_000
IDEMPOTENT_REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
BODIES_PER_CHANNEL_BYTES_MAX: Final = 4 * IDEMPOTENT_REQUEST_BYTES_MAX
BODIES_PER_SOURCE_BYTES_MAX: Final = 2 * BODIES_PER_CHANNEL_BYTES_MAX
BODIES_BYTES_MAX: Final = 4 * BODIES_PER_SOURCE_BYTES_MAX
# Paid requests of one process: far more than a process can serve well, so that only a flood meets
# these. A payer may have several channels, and an address several payers.
RUNNING_REQUESTS_MAX: Final = 2048
RUNNING_PER_SOURCE_MAX: Final = 512
RUNNING_PER_PAYER_MAX: Final = 256
REQUESTS_PER_SOURCE_AND_SECOND_MAX: Final = 1000
REQUESTS_PER_PAYER_AND_SECOND_MAX: Final = 500
FAILED_REQUESTS_MAX: Final = 30
FAILED_REQUESTS_PERIOD_S: Final = 30
BAD_CREDENTIALS_PER_SECOND_MAX: Final = 10
UNPAID_PER_SECOND_MAX: Final = 100
GENERATIONS_PER_SECOND_MAX: Final = 10
TARPIT_DELAY_S: Final = 0.5
TARPIT_WAITING_MAX: Final = 1024
PRODUCER_CLOSE_S_MAX: Final = 2

# Websockets.
FRAME_BYTES_MAX: Final = 1024 * 1024
FRAMES_AHEAD_MAX: Final = 256
FRAMES_AHEAD_BYTES_MAX: Final = 4 * 1024 * 1024
CREDENTIALS_AHEAD_MAX: Final = 32
CREDENTIALS_REFUSED_MAX: Final = 8
AUTHORIZATION_S_MAX: Final = 10
SOCKET_IDLE_S_MAX: Final = 120

# Model server. A prompt may have no price, so it is bounded; so is unpaid generation.
REQUEST_BYTES_MAX: Final = 64 * 1024
TOP_LOGPROBS_MAX: Final = 20
SCHEMA_VALUES_MAX: Final = 256
PATTERN_CHARACTERS_MAX: Final = 512
ABANDONED_UNITS_MAX: Final = 4096
# Models named by clients whose usage is compared with the charge, each by itself.
MODELS_COUNTED_MAX: Final = 256
# OpenAI's own bound on the texts of one request for embeddings.
EMBEDDED_TEXTS_MAX: Final = 2048
# OpenAI's own bound on `logprobs` of a completion.
LOGPROBS_MAX: Final = 5
# OpenAI's own bound on `n`.
CHOICES_MAX: Final = 128
# Nesting of a body's brackets: real tools and schemas have some twenty, and decoders recurse.
REQUEST_DEPTH_MAX: Final = 64
# OpenAI allows four; the model server searches for each with every token.
STOPS_MAX: Final = 16
# Of a model's name, which is part of a challenge.
MODEL_CHARS_MAX: Final = 255
# Of each stop sequence: a server may hold back that much text, generated and not yet charged.
STOP_BYTES_MAX: Final = 64
# A 64-bit Content-Length has no more digits, and longer ones are slow to parse.
LENGTH_DIGITS_MAX: Final = 20
# Digits of a count in a schema's pattern: enough for every count above the bound on its values.
PATTERN_COUNT_DIGITS_MAX: Final = 9

# The model server's answers. The operator trusts it, but it may be broken or be another server.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ANSWER_DEPTH_MAX: Final = 64
# Of the gateway's own questions: whether the model server is up, and which one it is.
PROBE_BYTES_MAX: Final = 1024 * 1024
PROBE_S_MAX: Final = 5.0
# Of its question how many tokens a prompt has, before the model runs; without an answer in time the
# prompt's bytes are an upper estimate.
PROMPT_COUNT_S_MAX: Final = 2.0
# A prompt has at most as many tokens as its request has bytes, and these for the template.
PROMPT_TOKENS_BESIDE: Final = 64
# How much of a redirect's target, or of bytes that are not HTTP, the log shows.
LOCATION_CHARS_MAX: Final = 200

# Nodes of the chain. One may be overloaded, broken or malicious.
# Above any node's answer to the largest range of logs that is requested.
NODE_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
# A head of a block has some kilobytes.
NODE_EVENT_BYTES_MAX: Final = 1024 * 1024
# How much of a node's message a log line and an error show.
NODE_MESSAGE_CHARS_MAX: Final = 200
# The gas tip is optional: without an answer by then, it is taken from the last blocks.
NODE_TIP_S_MAX: Final = 1.0
# How many payers may leave at the same time on the word of one node.
EXITS_BELIEVED_MAX: Final = 8
# Nonces that one node's count may make the settler fill: each costs the gas of a transfer.
GAP_FILLED_MAX: Final = 256
# Signers and payers remembered at the same time: each cost its owner a channel.
DISTRUSTED_MAX: Final = 100_000
# Vouchers for which the process remembers whether a wallet signed them: one or two a channel.
WALLETS_KNOWN_MAX: Final = 65_536
# Sponsored deposits that are checked together: each comes from a stranger and costs requests.
OPEN_ORDERS_MAX: Final = 256
# How long the settler tries to broadcast such a deposit: its signature may never expire.
DEPOSIT_WANTED_S_MAX: Final = 3600

# Signing services, files and the log. Each may turn out to be something else.
# A signature in JSON has some two hundred bytes.
SIGNER_ANSWER_BYTES_MAX: Final = 4096
# After that the process treats the file system as hanging.
FILE_S_MAX: Final = 10.0
KEYSTORE_BYTES_MAX: Final = 1024 * 1024
PASSWORD_BYTES_MAX: Final = 64 * 1024
# Two signatures in hexadecimal, and the other fields.
TOWER_LINE_BYTES_MAX: Final = 4 * WALLET_SIGNATURE_BYTES_MAX + 1024
# About a thousand lines, each with a signature to check, before the next file gets its turn.
TOWER_READ_BYTES_MAX: Final = 1024 * 1024
LOG_LINES_PER_MINUTE_MAX: Final = 30
LOG_KINDS_MAX: Final = 1024
# Lines that wait while the reader of standard error stalls.
LOG_QUEUED_BYTES_MAX: Final = 1024 * 1024

# The dashboard on the operator's port. What any program of this machine can ask of it.
# Wrong log-in tokens in a minute, of all clients together.
LOGIN_TRIES_MAX: Final = 10
# Pages that listen to live events at the same time: each costs a look at the ledger a second.
EVENT_STREAMS_MAX: Final = 16
# The dashboard's forms have two short fields.
FORM_BYTES_MAX: Final = 4096
FEED_BYTES_MAX: Final = 8 * 1024 * 1024

# The wallet. What an agent, or what it reads, can make people read.
# Of each text of an agent in a question: reason, task, tool, path, and of an alternative.
APPROVAL_TEXT_CHARS_MAX: Final = 1000
# Offers beside the one that is asked about.
APPROVAL_ALTERNATIVES_MAX: Final = 8

# Paying clients. What a provider can make one wait for or remember.
# For the receipt after the end of a stream; without a receipt the stream is still paid.
RECEIPT_WAIT_S_MAX: Final = 2.0
# How much of a refusal's text an error shows.
REFUSAL_CHARS_MAX: Final = 400

# A wallet's audit trail. What an agent says about a request is stored with each decision.
AUDIT_TEXT_CHARS_MAX: Final = 2048
AUDIT_REASON_CHARS_MAX: Final = 1024
AUDIT_ALTERNATIVES_MAX: Final = 16
# Of one agent. Further ones are counted, and the next record says how many there were.
AUDIT_REFUSALS_PER_MINUTE_MAX: Final = 120

# A wallet's socket. What an agent, or a program that has its token, can make the wallet use.
# Of one request of an agent: as much as is kept to be sent again after a 402.
WALLET_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
# Of all requests of one agent that run: a longest body is in memory twice.
WALLET_BODIES_BYTES_MAX: Final = 4 * WALLET_BODY_BYTES_MAX
# Of a question to the wallet itself: a list of ids, or a request to quote.
WALLET_QUESTION_BYTES_MAX: Final = 1024 * 1024
WALLET_PURPOSE_BYTES_MAX: Final = 8 * 1024
WALLET_TEXT_CHARS_MAX: Final = 1024
# Of one agent, at the same time. Each may hold a body and a connection to a server.
WALLET_REQUESTS_MAX: Final = 64
# Answers that broke off, of one agent, of which the wallet can say why.
WALLET_FAILURES_MAX: Final = 256
# How long a request waits for bytes of its target at most, if its agent is as patient.
WALLET_TIMEOUT_S_MAX: Final = 3600.0
# How long one question may wait for an approval.
WALLET_WAIT_S_MAX: Final = 60

# The paying proxy on this machine.
# Agents whose clients are open at the same time: each has connections and a store.
PROXY_CLIENTS_MAX: Final = 64
# Of an answer of a server that `mpp-session validate` checks.
CHECKED_ANSWER_BYTES_MAX: Final = 1024 * 1024
