"""One paid request: its channel, its vouchers, the reaction to refusals, and its stream."""
