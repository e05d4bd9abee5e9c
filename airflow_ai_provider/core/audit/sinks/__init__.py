"""Where the trail is delivered: archives, search indexes, exports."""
