"""A worker besides its runs: set-up (`signals`), heartbeat (`presence`), `sweep`, messages it refuses (`messages`)."""
