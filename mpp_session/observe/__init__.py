"""What an operator watches: metrics, health, alarms, settlements and traces."""
