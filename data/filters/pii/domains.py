"""Domains that an e-mail address is believed with."""

# All two-letter country codes are allowed. Of the others, those with many registrations (ICANN's list has 1,400); a longer list
# would believe more code, such as `A@w.shape`. Names of file types (zip, mov) are left out.
GENERIC = frozenset(
    """com org net edu gov mil int info biz name pro aero asia cat coop jobs mobi museum post tel travel arpa academy
    accountants actor agency app archi art associates audio auto band bank bar beer best bet bike bio black blog blue
    boutique build builders business buzz cafe cam camp capital care careers cars casa cash catering center charity chat
    cheap church city cleaning click clinic clothing cloud club coach codes coffee college community company computer
    consulting contractors cooking cool country coupons credit cricket dance date dating deals delivery dental design dev
    diet digital direct directory doctor dog domains earth education email energy engineer engineering enterprises equipment
    estate events exchange expert express family fans farm fashion finance financial fish fit fitness flights florist
    football forsale foundation fun fund furniture futbol gallery game games garden gift gifts gives global gmbh gold golf
    graphics gratis green group guide guru health healthcare help holdings holiday homes horse hospital host hosting hotel
    house immo inc industries ink institute insurance international investments jewelry kitchen land law lawyer legal life
    limited link live loan lol london love ltd luxury management market marketing mba media memorial men moda money mortgage
    network news ngo ninja nyc one online organic page paris partners parts party pet photo photography photos pics pictures
    pink pizza place plumbing plus press productions properties property pub recipes red rehab rent rentals repair report
    republican restaurant reviews rip rocks run sale school science security services shoes shop shopping show singles site
    ski soccer social software solar solutions space sport store stream studio style supply support surf surgery systems
    tattoo tax taxi team tech technology tennis theater tips tires today tools top tours town toys trade trading training
    tube university vacations ventures vet video villas vin vip vision vote voyage watch website wedding wiki win wine work
    works world wtf xyz yoga zone berlin hamburg koeln wien bayern amsterdam tokyo africa eus gal scot swiss quebec québec
    versicherung vermögensberater рф рус укр бел бг мкд ею онлайн сайт орг москва дети католик қаз срб мон ком ευ ελ""".split()
)
COUNTRIES = frozenset(
    """ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf
    cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf
    gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki
    km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx
    my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc
    sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us
    uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw""".split()
)

# Where people have an address, but do not work.
MAILBOXES = frozenset(
    """gmail.com googlemail.com yahoo.com yahoo.co.uk yahoo.co.jp yahoo.fr yahoo.de ymail.com hotmail.com hotmail.co.uk
    hotmail.fr outlook.com live.com msn.com aol.com icloud.com me.com mac.com gmx.de gmx.net gmx.com gmx.at gmx.ch web.de
    t-online.de freenet.de posteo.de mailbox.org protonmail.com proton.me pm.me tutanota.com fastmail.com fastmail.fm
    zoho.com mail.com mail.ru inbox.ru list.ru bk.ru yandex.ru yandex.com rambler.ru ukr.net i.ua qq.com 163.com 126.com
    sina.com naver.com daum.net hanmail.net rediffmail.com libero.it virgilio.it tiscali.it orange.fr wanadoo.fr laposte.net
    free.fr sfr.fr telia.com wp.pl o2.pl onet.pl interia.pl seznam.cz centrum.cz abv.bg uol.com.br bol.com.br terra.com.br
    comcast.net verizon.net att.net btinternet.com shaw.ca rogers.com bigpond.com""".split()
)


def is_top_level(label: str) -> bool:
    """Return whether `label` may end a domain: in one case, a country, a common generic name, or punycode (xn--)."""
    lower = label.lower()
    if label not in (lower, label.upper(), label.capitalize()):
        return False
    return lower in COUNTRIES or lower in GENERIC or (lower.startswith("xn--") and len(lower) > 5)
