"""What plug-in authors run: every op's cases against its oracle, on their device."""
