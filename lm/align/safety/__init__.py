"""The safety loop: attack, critique, revise, train, attack again."""
