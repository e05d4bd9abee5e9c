"""What is sent to a model: templates, messages, tools and attachments."""
