"""Other ways to pay than the session: `evm` charge and x402 exact, on routes with a fixed price."""

from mpp_session.agent.keystore import import_account

import_account()  # before pympp imports it, which would lift the recursion limit (F-02)
