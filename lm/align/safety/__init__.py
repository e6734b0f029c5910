"""The safety loop: attack, criticise, revise, train, attack again."""
