"""What is usual for an agent, and what is not: findings make the policy ask or pause, never allow.

`breaker` counts failures and repetitions, `profile` learns, `judge` compares (all pure: the time
comes with what they are given); `store` keeps both in the wallet's file.
"""
