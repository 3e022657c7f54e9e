"""Every bound on what a peer, a node or a stranger can make us use, with its unit last.

A bound that is crossed refuses; nothing here is ever cut to fit.
"""

from typing import Final

# Amounts. `uint128` on the wire and in the escrow's interface; the escrow itself stores 88 bits
# and refuses a larger deposit, so a voucher above that can never be paid and is refused too.
AMOUNT_MAX: Final = 2**128 - 1
AMOUNT_DIGITS_MAX: Final = 39
SAFE_INTEGER_MAX: Final = 2**53 - 1

# Wire. Checked before anything is decoded.
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
# What a refusal shows of content codings that no client of ours knows: a line of a log.
CODINGS_CHARS_MAX: Final = 64

# Connections to a gateway. What one may cost before anything is known of who it is.
CONNECTIONS_MAX: Final = 4096
HEAD_S_MAX: Final = 10
BODY_S_MAX: Final = 60
READ_S_MAX: Final = 30
# What asyncio takes from the queue before any of it is looked at: more would pass the bound above.
ACCEPTED_TOGETHER_MAX: Final = 16
# A credential of the greatest size, and what a browser with many cookies sends beside it.
HEAD_BYTES_MAX: Final = AUTHORIZATION_BYTES_MAX + 16 * 1024
# Of one connection in one turn of the loop, so that the others have theirs.
READ_BYTES_MAX: Final = 64 * 1024
HEAD_LINES_MAX: Final = 256
HEAD_WORDS_MAX: Final = 2048
TARGET_BYTES_MAX: Final = 8 * 1024
CHUNKS_SMALL_MAX: Final = 256
CHUNK_BYTES_MEAN_MIN: Final = 256

# Signatures. 65 bytes for a key; what an ERC-1271 wallet wants is passed through up to a cap.
SIGNATURE_BYTES: Final = 65
WALLET_SIGNATURE_BYTES_MAX: Final = 4096

# Challenges.
SECRET_BYTES_MIN: Final = 32
GENUINE_CHALLENGES_MAX: Final = 4096
CHALLENGE_LIFETIME_S: Final = 300

# Escrow. The draft asks for ten minutes of grace; below it no channel is accepted.
GRACE_PERIOD_S_MIN: Final = 600

# Channels.
RESERVATIONS_PER_CHANNEL_MAX: Final = 64
RESERVATION_STEP_UNITS: Final = 32
RESERVATION_LEASE_S: Final = 60
STREAM_PAUSE_S: Final = 5
STREAM_PAUSE_S_MAX: Final = 30
CLOSE_WAIT_S_MAX: Final = 10
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
STORED_RESPONSE_BYTES_MAX: Final = 1024 * 1024
IDEMPOTENCY_LIFETIME_S: Final = 24 * 3600
STORED_RESPONSES_PER_CHANNEL_MAX: Final = 1000
STORED_BYTES_PER_CHANNEL_MIN: Final = 1024 * 1024
STORED_BYTES_PER_BASE_UNIT: Final = 64
STORED_BYTES_PER_CHANNEL_MAX: Final = 64 * 1024 * 1024
STORED_BYTES_MAX: Final = 1024 * 1024 * 1024

# Paths. A client encodes one once; more layers are read in case a framework decodes them.
PATH_DECODINGS_MAX: Final = 8
UNICODE_PATH_CHARS_MAX: Final = 1024

# Engine. What strangers can cause is bounded in number, in memory and in time.
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
IDEMPOTENT_REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
BODIES_PER_CHANNEL_BYTES_MAX: Final = 4 * IDEMPOTENT_REQUEST_BYTES_MAX
BODIES_PER_SOURCE_BYTES_MAX: Final = 2 * BODIES_PER_CHANNEL_BYTES_MAX
BODIES_BYTES_MAX: Final = 4 * BODIES_PER_SOURCE_BYTES_MAX
FAILED_REQUESTS_MAX: Final = 30
FAILED_REQUESTS_PERIOD_S: Final = 30
BAD_CREDENTIALS_PER_SECOND_MAX: Final = 10
UNPAID_PER_SECOND_MAX: Final = 100
LATE_ANSWER_S: Final = 0.5
LATE_ANSWERS_MAX: Final = 1024
PRODUCER_CLOSE_S_MAX: Final = 2

# Model server. What is read is not charged, so it is bounded; work that nobody pays for, too.
REQUEST_BYTES_MAX: Final = 64 * 1024
TOP_LOGPROBS_MAX: Final = 20
SCHEMA_VALUES_MAX: Final = 256
PATTERN_CHARACTERS_MAX: Final = 512
ABANDONED_UNITS_MAX: Final = 4096
# OpenAI's own bound on `n`.
CHOICES_MAX: Final = 128
# Of a body's brackets: real tools and schemas have some twenty, and decoders recurse.
REQUEST_DEPTH_MAX: Final = 64
# More than the four of OpenAI; each is searched for with every token.
STOPS_MAX: Final = 16
# Of each stop sequence: so much text a server may hold back, made and not yet charged.
STOP_BYTES_MAX: Final = 64
# A length of 64 bits has no more, and longer ones are slow to read.
LENGTH_DIGITS_MAX: Final = 20
# Of a count in a schema's pattern: enough for every count above the bound on its values.
PATTERN_COUNT_DIGITS_MAX: Final = 9

# The model server's answers. It is trusted, and may yet be broken, or another's.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ANSWER_DEPTH_MAX: Final = 64
# Of what the gateway asks by itself: whether it is there, and which server it is.
PROBE_BYTES_MAX: Final = 1024 * 1024
PROBE_S_MAX: Final = 5.0
# What the log shows of where it redirects to.
LOCATION_CHARS_MAX: Final = 200

# Nodes of the chain. They may be overloaded, broken or bought.
# Above what any node answers to the most logs that are asked for at once.
NODE_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
# A head of a block has some kilobytes.
NODE_EVENT_BYTES_MAX: Final = 1024 * 1024
# What a log and an error show of a node's words.
NODE_MESSAGE_CHARS_MAX: Final = 200
# A tip is a wish: what no node says by then is taken from the last blocks.
NODE_TIP_S_MAX: Final = 1.0
# So many payers at once may leave by one node's word.
EXITS_BELIEVED_MAX: Final = 8
# Nonces that one node's count may have us fill: each costs the gas of a transfer.
GAP_FILLED_MAX: Final = 256
# Signers and payers that are remembered at once: each cost its owner a channel.
DISTRUSTED_MAX: Final = 100_000
# Vouchers of which is known whether a wallet signed them, one or two to a channel.
WALLETS_KNOWN_MAX: Final = 65_536
# Deposits at our gas that are looked at together: each is strangers' and costs questions.
OPEN_ORDERS_MAX: Final = 256
# How long such a deposit's broadcast is tried: one may be signed for ever.
DEPOSIT_WANTED_S_MAX: Final = 3600

# Signing services, files and the log. What stands where they should be may be something else.
# A signature in JSON has some two hundred bytes.
SIGNER_ANSWER_BYTES_MAX: Final = 4096
# After that a file counts as one on a file system that hangs.
FILE_S_MAX: Final = 10.0
KEYSTORE_BYTES_MAX: Final = 1024 * 1024
PASSWORD_BYTES_MAX: Final = 64 * 1024
# Two signatures in hexadecimal, and the rest.
TOWER_LINE_BYTES_MAX: Final = 4 * WALLET_SIGNATURE_BYTES_MAX + 1024
# Some thousand lines, each with a signature to check, before others have their turn.
TOWER_READ_BYTES_MAX: Final = 1024 * 1024
LOG_LINES_PER_MINUTE_MAX: Final = 30
LOG_KINDS_MAX: Final = 1024
# What waits for a reader of standard error that stalls.
LOG_QUEUED_BYTES_MAX: Final = 1024 * 1024

# Paying clients. What a provider can make one wait for or remember.
# For the receipt that follows a stream's end; without it the stream is paid all the same.
RECEIPT_WAIT_S_MAX: Final = 2.0
# What an error shows of a refusal's words.
REFUSAL_CHARS_MAX: Final = 400
