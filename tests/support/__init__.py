"""What tests share: servers, doubles of remote services, and makers of values."""
