"""From `init` to `shutdown`. Uses collectives, to agree with the other ranks, so it stands above them."""
