"""One paid request: which channel, which voucher, what a refusal means, how the stream is paid."""
