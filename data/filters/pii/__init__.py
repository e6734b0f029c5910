"""Find and mask personal data: e-mail and IP addresses, phone, card, account and social security numbers, secrets."""
