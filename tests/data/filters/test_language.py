"""Language identification: right on sentences in 24 languages, and equal to py3langid."""

import numpy as np
import pytest

pytest.importorskip("py3langid")

from data.filters.language import UNKNOWN, decompressed, identify, language, load_model

SENTENCES = {
    "en": "The old bridge was closed last winter, so the children now walk to school along the river every morning.",
    "de": "Die alte Brücke wurde im letzten Winter gesperrt, deshalb gehen die Kinder jetzt am Fluss entlang zur Schule.",
    "fr": "Le vieux pont a été fermé l'hiver dernier, c'est pourquoi les enfants vont à l'école le long de la rivière.",
    "es": "El viejo puente se cerró el invierno pasado, así que los niños ahora caminan a la escuela por la orilla del río.",
    "pt": "A ponte velha foi fechada no inverno passado, por isso as crianças agora vão para a escola pela margem do rio.",
    "it": "Il vecchio ponte è stato chiuso lo scorso inverno, quindi i bambini ora vanno a scuola a piedi lungo il fiume.",
    "nl": "De oude brug werd afgelopen winter gesloten, dus lopen de kinderen nu elke ochtend langs de rivier naar school.",
    "sv": "Den gamla bron stängdes förra vintern, så barnen går nu till skolan längs floden varje morgon.",
    "da": "Den gamle bro blev lukket sidste vinter, så børnene går nu i skole langs floden hver eneste morgen.",
    "fi": "Vanha silta suljettiin viime talvena, joten lapset kävelevät nyt joka aamu kouluun jokea pitkin.",
    "pl": "Stary most został zamknięty zeszłej zimy, więc dzieci chodzą teraz każdego ranka do szkoły wzdłuż rzeki.",
    "cs": "Starý most byl minulou zimu uzavřen, takže děti teď chodí každé ráno do školy podél řeky.",
    "hu": "A régi hidat tavaly télen lezárták, ezért a gyerekek most minden reggel a folyó mentén járnak iskolába.",
    "ro": "Podul vechi a fost închis iarna trecută, așa că acum copiii merg la școală de-a lungul râului în fiecare dimineață.",
    "tr": "Eski köprü geçen kış kapatıldı, bu yüzden çocuklar artık her sabah nehir boyunca okula yürüyorlar.",
    "ru": "Старый мост закрыли прошлой зимой, поэтому дети теперь каждое утро ходят в школу вдоль реки.",
    "uk": "Старий міст закрили минулої зими, тому діти тепер щоранку ходять до школи вздовж річки.",
    "el": "Η παλιά γέφυρα έκλεισε τον περασμένο χειμώνα, γι' αυτό τα παιδιά πηγαίνουν τώρα στο σχολείο δίπλα στο ποτάμι.",
    "he": "הגשר הישן נסגר בחורף שעבר, ולכן הילדים הולכים עכשיו לבית הספר לאורך הנהר בכל בוקר.",
    "ar": "أغلق الجسر القديم في الشتاء الماضي، لذلك يمشي الأطفال الآن إلى المدرسة على طول النهر كل صباح.",
    "hi": "पुराना पुल पिछली सर्दियों में बंद कर दिया गया था, इसलिए बच्चे अब हर सुबह नदी के किनारे से स्कूल जाते हैं।",
    "ja": "古い橋は去年の冬に閉鎖されたので、子どもたちは今、毎朝川沿いを歩いて学校に通っています。",
    "ko": "오래된 다리가 지난겨울에 폐쇄되어서 아이들은 이제 매일 아침 강을 따라 학교에 걸어갑니다.",
    "zh": "旧桥去年冬天关闭了，所以孩子们现在每天早上沿着河边走路去上学。",
    "vi": "Cây cầu cũ đã bị đóng cửa vào mùa đông năm ngoái, vì vậy bây giờ bọn trẻ đi bộ đến trường dọc theo bờ sông.",
}


def test_every_sentence_is_recognised():
    found, score = identify(list(SENTENCES.values()))
    assert dict(zip(SENTENCES, found.tolist())) == {name: name for name in SENTENCES}
    assert score.dtype == np.float32 and (score > 0.8).all()


def test_agrees_with_py3langid_reading_byte_by_byte():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    twin = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = list(SENTENCES.values())
    texts += [text.upper() for text in texts] + [text[:n] for n, text in enumerate(texts)] + ["\n".join(texts), "x" * 5000]
    found, score = identify(texts)
    for text, label, probability in zip(texts, found, score):
        expected, other = twin.classify(text)
        if label == UNKNOWN:
            assert other == pytest.approx(1 / len(load_model().languages), abs=0.02)  # nothing was counted
        else:
            assert (label, float(probability)) == (expected, pytest.approx(other, abs=1e-4))


@pytest.mark.slow
def test_tables_in_the_cache_are_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = decompressed()

    def same() -> bool:
        loaded = load_model.__wrapped__()
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(loaded, model, strict=True))

    assert same() and same()
    small, large = sorted((tmp_path / "lmcraft").glob("language-*.np[yz]"), key=lambda path: path.stat().st_size)
    for kept in (small, large):
        content = kept.read_bytes()
        for damaged in (content[:-1000], content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]):
            kept.write_bytes(damaged)
            assert same() and kept.read_bytes() == content
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert same()


def test_a_text_has_the_same_columns_in_every_batch():
    texts = [*SENTENCES.values(), "", "\n\n", "1234", "\ud800 lone surrogate", " ".join(SENTENCES.values()) * 5]
    together = language(texts)
    for number, text in enumerate(texts):
        alone = language([text])
        for name, column in together.items():
            assert column[number] == alone[name][0], (name, text[:40])


def test_texts_without_a_feature_are_undetermined():
    columns = language(["", "1234", "?!"])
    assert columns["language"] == [UNKNOWN] * 3
    assert columns["language_score"].tolist() == [0, 0, 0]
    assert all(len(column) == 0 for column in language([]).values())


def test_a_long_document_is_read_throughout():
    menu = "Home About Contact Terms of use and privacy policy of this site. " * 10
    columns = language([menu + (SENTENCES["fi"] + " ") * 200])
    assert columns["language"] == ["fi"]
