"""Find and mask personal data: e-mail and IP addresses, phone, card and account numbers, US social security numbers, secrets."""
