"""Errors of the chain side, each below the one of `channel.errors` that callers already catch.

ChainUnavailableError               503  no usable answer
└── RpcRefusedError                      the node answered with a JSON-RPC error
TransactionRevertedError            409  session/transaction-reverted
└── ContractRevertedError                with the contract's reason
    ├── ChannelNotFoundRevertError    410  session/channel-not-found
    ├── ChannelFinalizedRevertError   410  session/channel-finalized
    ├── InvalidSignatureRevertError   402  session/invalid-signature
    ├── AmountExceedsDepositRevertError 402 session/amount-exceeds-deposit
    └── TokenRefusedRevertError       402  session/insufficient-balance
SettlementPendingError              503
├── TransactionPendingError              broadcast, not mined within the bound
├── TransactionReplacedError             another transaction, not from the journal, used its nonce
├── FeeAboveBudgetError                  the fee is above its budget now
├── GasHourUsedError                     the hour's gas limit for settles and closes is used up
├── AuthorizationUnusableError           the authorization was used or late; the next one is new
└── ChannelQuarantinedError              refused for now, retried later
OperatorError                       503
├── LeaseLostError                       another settler has the key
├── NonceTakenError                      another transaction of the journal has the nonce
└── SignerError                          no usable signature
AgentError
├── NoGasError                           the account has no ether for gas
├── UntrustedEscrowError                 depositing there could lose the deposit
└── WalletSendsError                     only the wallet itself can send this transaction
AnvilError                          a local chain that does not start

A contract's refusal stays in the family of reverts, and has the status and problem type of the
engine's refusal of the same name (ERR-02). Messages never contain a raw selector.
"""

from channel import errors
from channel.types import Address, TxHash
from settlement.types import RevertReason

__all__ = [
    "AmountExceedsDepositRevertError",
    "AnvilError",
    "AuthorizationUnusableError",
    "ChannelFinalizedRevertError",
    "ChannelNotFoundRevertError",
    "ChannelQuarantinedError",
    "ContractRevertedError",
    "FeeAboveBudgetError",
    "GasHourUsedError",
    "InvalidSignatureRevertError",
    "LeaseLostError",
    "NoGasError",
    "NonceTakenError",
    "RpcRefusedError",
    "SignerError",
    "TokenRefusedRevertError",
    "TransactionPendingError",
    "TransactionReplacedError",
    "UntrustedEscrowError",
    "WalletSendsError",
    "contract_reverted",
]


class RpcRefusedError(errors.ChainUnavailableError):
    """The node answered with a JSON-RPC error that is not a contract's revert."""

    def __init__(self, method: str, *, code: int, message: str) -> None:
        super().__init__(f"The node refused {method}: {message} ({code}).")
        self.method = method
        self.code = code
        self.message = message


class ContractRevertedError(errors.TransactionRevertedError):
    """A contract refused, in a simulation or in a mined transaction.

    Attributes:
        reason: Why.
        text: What the contract said in words, when it used words.
        tx_hash: The mined transaction. None if the simulation was refused: nothing was broadcast
            and no gas was spent.
    """

    def __init__(
        self, reason: RevertReason, *, text: str = "", tx_hash: TxHash | None = None
    ) -> None:
        said = f" It said: {text}." if text else ""
        super().__init__(f"The contract refused: {reason.value}.{said}")
        self.reason = reason
        self.text = text
        self.tx_hash = tx_hash


class ChannelNotFoundRevertError(ContractRevertedError):
    """The escrow has no such channel."""

    status = errors.ChannelNotFoundError.status
    problem_type = errors.ChannelNotFoundError.problem_type
    title = errors.ChannelNotFoundError.title


class ChannelFinalizedRevertError(ContractRevertedError):
    """The channel had ended before the call."""

    status = errors.ChannelFinalizedError.status
    problem_type = errors.ChannelFinalizedError.problem_type
    title = errors.ChannelFinalizedError.title


class InvalidSignatureRevertError(ContractRevertedError):
    """The escrow does not accept the signature."""

    status = errors.InvalidSignatureError.status
    problem_type = errors.InvalidSignatureError.problem_type
    title = errors.InvalidSignatureError.title


class AmountExceedsDepositRevertError(ContractRevertedError):
    """The escrow cannot pay the amount."""

    status = errors.AmountExceedsDepositError.status
    problem_type = errors.AmountExceedsDepositError.problem_type
    title = errors.AmountExceedsDepositError.title


class TokenRefusedRevertError(ContractRevertedError):
    """The token did not transfer: balance, allowance, a pause or a blacklist."""

    status = errors.InsufficientBalanceError.status
    problem_type = errors.InsufficientBalanceError.problem_type
    title = errors.InsufficientBalanceError.title


class TransactionPendingError(errors.SettlementPendingError):
    """Broadcast and not mined within the bound: neither success nor failure (F-75)."""

    def __init__(self, tx_hash: TxHash) -> None:
        super().__init__(f"Transaction 0x{tx_hash.hex()} is not mined yet.")
        self.tx_hash = tx_hash


class TransactionReplacedError(errors.SettlementPendingError):
    """A transaction that is not in the journal used the key's nonce; this one was not mined."""

    def __init__(self, nonce: int) -> None:
        super().__init__(f"Nonce {nonce} was used by a transaction that is not ours.")
        self.nonce = nonce


class GasHourUsedError(errors.SettlementPendingError):
    """Settles and closes have used up the operator's gas limit of the hour (O-88).

    Nothing was broadcast. It is sent once the hour has room, or its deadline is near.
    """

    def __init__(self, *, spent_wei: int, limit_wei: int) -> None:
        super().__init__(
            f"The last hour's settles and closes cost {spent_wei} wei; the limit is {limit_wei}. "
            "It is sent once the hour has room."
        )


class FeeAboveBudgetError(errors.SettlementPendingError):
    """Mining it now would cost more than its budget; it waits for a lower base fee (F-78)."""

    def __init__(self, *, base_fee_wei: int, ceiling_wei: int) -> None:
        super().__init__(
            f"The base fee is {base_fee_wei} wei; this transaction is worth {ceiling_wei}."
        )
        self.base_fee_wei = base_fee_wei
        self.ceiling_wei = ceiling_wei


class ChannelQuarantinedError(errors.SettlementPendingError):
    """The chain refuses this channel's settle or close for now; it is retried (F-79, F-87)."""

    def __init__(self, reason: RevertReason) -> None:
        super().__init__(f"To be tried again: {reason.value}.")
        self.reason = reason


class AuthorizationUnusableError(errors.SettlementPendingError):
    """The payee's authorization was used or came late; the next transaction has a new one."""

    def __init__(self, reason: RevertReason) -> None:
        super().__init__(f"To be signed again: {reason.value}.")
        self.reason = reason


class LeaseLostError(errors.OperatorError):
    """Another settler has taken the key: this one must neither sign nor record (F-110)."""


class NonceTakenError(errors.OperatorError):
    """The journal has given this nonce to another transaction; nothing was stored."""


class SignerError(errors.OperatorError):
    """The signer did not answer, or returned no valid signature by the expected key."""


class UntrustedEscrowError(errors.AgentError):
    """An escrow that is not the deployment a payer trusts; nothing was deposited (F-91)."""

    def __init__(self, escrow: Address, why: str) -> None:
        super().__init__(f"The escrow 0x{escrow.hex()} {why}.")
        self.escrow = escrow


class NoGasError(errors.AgentError):
    """Withdrawing without the server, or an unsponsored deposit, needs ether."""

    def __init__(self, account: Address) -> None:
        super().__init__(f"0x{account.hex()} has no ether for gas: send it some. Nothing was sent.")
        self.account = account


class WalletSendsError(errors.AgentError):
    """Only a contract wallet itself can send its transactions; its signer cannot."""

    def __init__(self, wallet: Address) -> None:
        super().__init__(f"Send this from the wallet 0x{wallet.hex()} itself; nothing was sent.")
        self.wallet = wallet


class AnvilError(errors.MppSessionError):
    """The local chain cannot be installed or started."""


_BY_REASON: dict[RevertReason, type[ContractRevertedError]] = {
    RevertReason.CHANNEL_NOT_FOUND: ChannelNotFoundRevertError,
    RevertReason.CHANNEL_FINALIZED: ChannelFinalizedRevertError,
    RevertReason.INVALID_SIGNATURE: InvalidSignatureRevertError,
    RevertReason.AMOUNT_EXCEEDS_DEPOSIT: AmountExceedsDepositRevertError,
    RevertReason.TOKEN_REFUSED: TokenRefusedRevertError,
}


def contract_reverted(
    reason: RevertReason, *, text: str = "", tx_hash: TxHash | None = None
) -> ContractRevertedError:
    """Build the error for a reason, of the class that carries its problem type (ERR-02)."""
    return _BY_REASON.get(reason, ContractRevertedError)(reason, text=text, tx_hash=tx_hash)
