"""Where trials run. ONE FILE = ONE PLACE TO RUN; this table lists them all."""

from normbench.lookup import Entry, Table

EXECUTORS: Table[Entry] = Table(
    "executor",
    Entry("serial", "one trial after the other in this process", "normbench.executors.serial:execute"),
    Entry("pool", "persistent worker processes on this machine", "normbench.executors.pool:execute"),
)
