"""Personal data: found, replaced by tokens and put back; fields encrypted; the keys for both."""
