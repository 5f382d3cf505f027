"""What supervisor and workers share: the board (numbers), messages (facts), the channel (bytes and descriptors)."""
