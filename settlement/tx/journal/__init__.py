"""The journal: stores transactions durably before they are broadcast, under a lease."""
