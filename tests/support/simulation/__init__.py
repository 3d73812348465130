"""A whole cluster in virtual time: production services on fakes, faults from a seed."""
