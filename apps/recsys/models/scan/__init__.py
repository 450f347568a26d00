"""Lists from a catalogue that stays on disk: codes of the items in the order of their lengths, and exact scores."""
