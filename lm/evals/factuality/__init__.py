"""Where a model invents: questions answered from memory, texts held against documents, against other draws, cloze facts."""
