"""What an earlier commit left on wire and disk: golden files that today's code must read, and a fleet of both."""
