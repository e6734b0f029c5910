"""Hand-written and generated texts with personal data, marked as ⟦kind:…⟧, and texts that only look like it.

Generated card numbers, IBANs and phone numbers have right check digits and real numbering plans, but belong to nobody: they are
drawn at random or are the example numbers of libphonenumber.
"""

import random
import re
import string

MARK = re.compile(r"⟦(\w+):(.*?)⟧", re.DOTALL)


def unmarked(text: str) -> tuple[str, list[tuple[int, int, str]]]:
    """Return the text without marks, and the (start, end, kind) that they enclosed."""
    pieces, spans, reached, length = [], [], 0, 0
    for match in MARK.finditer(text):
        pieces.append(text[reached : match.start()])
        length += len(pieces[-1])
        spans.append((length, length + len(match[2]), match[1]))
        pieces.append(match[2])
        length += len(match[2])
        reached = match.end()
    return "".join(pieces) + text[reached:], spans


EMAILS = """
Write to ⟦email:anna.keller@posteo.de⟧ for details.
Contact: ⟦email:J.Smith+news@mail.example.co.uk⟧.
<a href="mailto:⟦email:bob@foo-bar.io⟧?subject=hi">mail</a>
(⟦email:info@acme.com⟧), or call us.
Email:⟦email:sales@shop24.biz⟧;
⟦email:first.last@sub.dept.university.edu⟧ wrote:
"⟦email:o'neil@irish.ie⟧" <⟦email:oneil_22@gmail.com⟧>
Reach ⟦email:name (at) host dot com⟧ any time.
Reach ⟦email:maria [at] web [dot] de⟧ any time.
My address is ⟦email:john dot doe at gmail dot com⟧, write me.
My address is ⟦email:peter{at}uni-bonn.de⟧.
mail ⟦email:peter.lustig(at)uni-bonn(dot)de⟧
mail ⟦email:PETER AT GMAIL DOT COM⟧
mail ⟦email:jane_roe AT yahoo DOT co DOT uk⟧ please
contact ⟦email:kim&#64;example.org⟧
mailto:⟦email:ann%40example.net⟧
It is ⟦email:carl @ mail.com⟧ I think.
It is ⟦email:carl@ mail.com⟧ I think.
It is ⟦email:carl @ mail . com⟧ I think.
⟦email:li.wei@qq.com⟧是我的邮箱
我的邮箱是⟦email:li.wei@163.com⟧，请联系
メール：⟦email:taro@example.jp⟧まで
⟦email:иван@почта.рф⟧ in Cyrillic
⟦email:user@xn--bcher-kva.de⟧
⟦email:ｎａｍｅ＠ｈｏｓｔ．ｃｏｍ⟧ in full width
⟦email:na\u200bme@ho\u200bst.com⟧ with zero-width spaces
⟦email:name\u00ad@host.com⟧ with a soft hyphen
⟦email:root@[8.8.4.4]⟧ by number
⟦email:very.common@deep.sub.domain.example.museum⟧
See ⟦email:a@b.co⟧!
From ⟦email:support@company.technology⟧ we
CC ⟦email:x1@y2.org⟧,⟦email:x2@y2.org⟧;⟦email:x3@y2.org⟧
email=⟦email:foo@bar.com⟧&x=1
_⟦email:hello@studio.design⟧_ in markdown
*⟦email:hello@studio.agency⟧*
Please mail ⟦email:hr@firm.com⟧.The office is closed.
user: ⟦email:admin@server.local.net⟧
⟦email:jean-luc.picard@starfleet.fr⟧
⟦email:100200@students.uni.pl⟧
⟦email:kontakt <at> firma <dot> pl⟧
⟦email:juan(arroba)correo.es⟧
⟦email:frau.holle ät märchen punkt de⟧ x
⟦email:frau.holle (ät) maerchen punkt de⟧
⟦email:name
@host.com⟧ broken over lines
⟦email:name@
host.com⟧ broken over lines
"""

IPS = """
Blocked ⟦ip:8.8.8.8⟧ today.
From ⟦ip:93.184.216.34⟧:443 to 10.0.0.5:80
http://⟦ip:151.101.1.69⟧/index.html
ping ⟦ip:1.1.1.1⟧
[⟦ip:142.250.74.46⟧] connected
edit by ⟦ip:84.112.33.7⟧ (talk)
client ⟦ip:185.199.108.153⟧, server
route ⟦ip:203.0.114.0⟧/24 via
Bad host ⟦ip:45[.]33[.]32[.]156⟧ found
Bad host ⟦ip:45 . 33 . 32 . 156⟧ found
IP: ⟦ip:４５.３３.３２.１５６⟧
⟦ip:2001:4860:4860::8888⟧ is a resolver
[⟦ip:2a00:1450:4001:81b::200e⟧]:443
src=⟦ip:2606:4700:4700::1111⟧ dst=::1
⟦ip:2620:0:2d0:200::7⟧,⟦ip:2a02:8108:50c0:1234:a1b2:c3d4:e5f6:0708⟧
Last login from ⟦ip:77.12.200.201⟧.
Your IP (⟦ip:31.13.71.36⟧) was logged.
Host ⟦ip:199.9.14.201⟧ is down
"⟦ip:23.45.67.89⟧ - - [10/Oct/2000:13:55:36 -0700] GET"
⟦ip:::ffff:52.84.125.10⟧ mapped
⟦ip:64.233.160.0⟧-⟦ip:64.233.191.255⟧
Zero ⟦ip:8.8.\u200b4.4⟧ width
"""

CARDS = """
Card ⟦card:4111 1111-1111 1111⟧ exp 12/27
card:⟦card:4111111111111111⟧
Visa ⟦card:4012-8888-8888-1881⟧ cvv 123
⟦card:4000 0566 5566 5556⟧
Amex ⟦card:3782 822463 10005⟧, name
Amex ⟦card:371449635398431⟧
Diners ⟦card:3056 930902 5904⟧.
Diners ⟦card:38520000023237⟧
Discover ⟦card:6011-1111-1111-1117⟧
Discover ⟦card:6011000990139424⟧
JCB ⟦card:3530 1113 3330 0000⟧
JCB ⟦card:3566002020360505⟧
MC ⟦card:5555 5555 5555 4444⟧
MC ⟦card:5105.1051.0510.5100⟧
MC2 ⟦card:2223003122003222⟧
UnionPay ⟦card:6200 0000 0000 0005⟧
Card ⟦card:４１１１ １１１１ １１１１ １１１１⟧ wide
Card ⟦card:4111\u200b1111\u200b1111\u200b1111⟧ joined
Card ⟦card:4111
1111
1111
1111⟧ in lines
Card ⟦card:42 42 42 42 42 42 42 42⟧ in pairs
Card ⟦card:4242 - 4242 - 4242 - 4242⟧ dashes
Card ⟦card:4242\u00a04242\u00a04242\u00a04242⟧ nbsp
Card ⟦card:4242–4242–4242–4242⟧ en dash
On 12 ⟦card:4242 4242 4242 4242⟧ 123 was used
"""

SSNS = """
SSN: ⟦ssn:123-45-6789⟧
My social security number is ⟦ssn:219 09 9999⟧.
ssn ⟦ssn:219099999⟧
Her number ⟦ssn:536-90-4399⟧, born 1970
SSN ⟦ssn:078–05–1120⟧ en dash
SSN ⟦ssn:１２３-４５-６７８９⟧
(⟦ssn:457-55-5462⟧)
SSN# ⟦ssn:574 66 1234⟧
"""

PHONES = """
Call ⟦phone:(212) 555-0123⟧ now
Call ⟦phone:212-555-0123⟧ now
Call ⟦phone:212.555.0123⟧ now
Call ⟦phone:212 555 0123⟧ now
Call ⟦phone:+1 212 555 0123⟧ now
Call ⟦phone:1-800-356-9377⟧ toll free
Office: ⟦phone:+44 20 7946 0958⟧.
Office: ⟦phone:+44 (0)20 7946 0958⟧.
Office: ⟦phone:0044 20 7946 0958⟧.
Office: ⟦phone:020 7946 0958⟧.
Tel. ⟦phone:030 901820⟧
Tel.: ⟦phone:089/38000⟧ Fax: ⟦phone:089/3800-3425⟧
Telefon ⟦phone:0171 1234567⟧
Tél : ⟦phone:01 42 68 53 00⟧
⟦phone:01.42.68.53.00⟧ à Paris
⟦phone:+33 1 42 68 53 00⟧
Teléfono: ⟦phone:912 34 56 78⟧
Móvil ⟦phone:612345678⟧
電話：⟦phone:03-3201-3331⟧
电话：⟦phone:010-6559 5858⟧
手机 ⟦phone:13812345678⟧
тел. ⟦phone:+7 495 123-45-67⟧
тел: ⟦phone:8 (495) 123-45-67⟧
Celular: ⟦phone:(11) 91234-5678⟧
⟦phone:(11) 91234-5678⟧ São Paulo
Mob ⟦phone:98765 43210⟧
Mobile: ⟦phone:+91 98765 43210⟧
phone: ⟦phone:555-0199-22⟧
ph ⟦phone:(02) 9374 4000⟧
Phone number: ⟦phone:5551234567⟧
WhatsApp ⟦phone:+55 11 91234 5678⟧
📞 ⟦phone:0800 1111 999⟧
☎ ⟦phone:0211 123 4567⟧
<a href="tel:⟦phone:+12125550123⟧">
text me at ⟦phone:415-555-2671⟧ ok
you can reach me on ⟦phone:07911 123456⟧
Fax ⟦phone:+1 (650) 253-0001⟧
⟦phone:(650) 253-0000⟧ x123
⟦phone:650-253-0000⟧ ext. 12
⟦phone:＋４４ ２０ ７９４６ ０９５８⟧
⟦phone:+4\u200b4 20 7946 0958⟧
⟦phone:+44
20 7946 0958⟧
⟦phone:+44–20–7946–0958⟧
⟦phone:+49 (0) 30 901820⟧
Handy: ⟦phone:0151/23456789⟧
⟦phone:650-253-0000⟧ ⟦phone:650-253-0001⟧
⟦phone:650-253-0000⟧
⟦phone:650-253-0001⟧
"""

SECRETS = """
aws_access_key_id = ⟦secret:AKIAIOSFODNN7EXAMPLQ⟧
aws_secret_access_key = ⟦secret:wJalrXUtnFEMI/K7MDENG/bPxRfiCYz9QeWq1Zp8⟧
token: ⟦secret:ghp_R2D2c3POabcdefghijklmnopqrstuvwx0123⟧
export GITHUB=⟦secret:github_pat_11ABCDEFG0abcdefghijkl_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW⟧
SLACK=⟦secret:xoxb-123456789012-abcdefGHIJKL123456⟧
https://⟦secret:hooks.slack.com/services/T0AAAAAAA/B0BBBBBBB/abcdefghijklmnopqrstuvwx⟧
key=⟦secret:AIzaSyA1234567890abcdefghijklmnopqrstuv⟧
OPENAI_API_KEY=⟦secret:sk-proj-4f9Kd82hsLq0Zx7Vb3Nn6Mt1Rw5Yp⟧
openai.api_key = "⟦secret:sk-Zx7Vb3Nn6Mt1Rw5Yp4f9Kd82hsLq0T3BlbkFJabc⟧"
ANTHROPIC: ⟦secret:sk-ant-api03-4f9Kd82hsLq0Zx7Vb3Nn6Mt1Rw5Yp⟧
stripe.key = '⟦secret:sk_live_4eC39HqLyjWDarjtT1zdp7dc⟧'
HF ⟦secret:hf_abcdefghijklmnopqrstuvwxyzABCDEFGH⟧
//registry.npmjs.org/:_authToken=⟦secret:npm_abcdefghijklmnopqrstuvwxyz0123456789⟧
⟦secret:eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P⟧
Authorization: Bearer ⟦secret:mF_9.B5f-4.1JqM4f9Kd82hsLq0⟧
postgres://⟦secret:admin:s3cr3tPw⟧@db.internal:5432/app
https://⟦secret:bob:hunter22⟧@example.com/repo.git
password = "⟦secret:Tr0ub4dor&3⟧"
password: ⟦secret:hunter2x⟧
DB_PASSWORD=⟦secret:p4ssw0rt!⟧
passwd=⟦secret:qwerty12⟧
"pwd": "⟦secret:S3cure!pass⟧",
My password is ⟦secret:blue42sky⟧.
api_key: ⟦secret:8f14e45fceea167a5a36dedd4bea2543⟧
"apiKey": "⟦secret:c4ca4238a0b923820dcc509a6f75849b⟧"
client_secret='⟦secret:GOCSPX-a1B2c3D4e5F6g7H8i9J0⟧'
AccessToken = ⟦secret:ZXhhbXBs2ZTEyMzQ1Njc4OTA⟧
⟦secret:-----BEGIN RSA PRIVATE KEY-----
MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7MaGBhvoGAxbGxKxQ
-----END RSA PRIVATE KEY-----⟧
⟦secret:-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gt
-----END OPENSSH PRIVATE KEY-----⟧
GITLAB ⟦secret:glpat-abcDEF123456ghiJKL78⟧
SENDGRID ⟦secret:SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG⟧
TWILIO ⟦secret:SK0123456789abcdef0123456789abcdef⟧
DefaultEndpointsProtocol=https;⟦secret:AccountKey=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/abcdefghijklmnopqrstuv==⟧
"""

IBANS = """
IBAN ⟦iban:DE89 3704 0044 0532 0130 00⟧
⟦iban:DE89370400440532013000⟧
⟦iban:GB29 NWBK 6016 1331 9268 19⟧ please
Konto: ⟦iban:AT61 1904 3002 3457 3201⟧.
⟦iban:CH93 0076 2011 6238 5295 7⟧
⟦iban:fr14 2004 1010 0505 0001 3m02 606⟧
⟦iban:NL91ABNA0417164300⟧,
⟦iban:BE68-5390-0754-7034⟧
⟦iban:ES91 2100 0418 4502 0005 1332⟧ BIC CAIXESBBXXX
IBAN:⟦iban:IT60X0542811101000000123456⟧
⟦iban:NO93 8601 1117 947⟧ paid
⟦iban:DE89\u200b3704\u200b0044\u200b0532\u200b0130\u200b00⟧
⟦iban:DE89 3704 0044
0532 0130 00⟧ over lines
⟦iban:PL61109010140000071219812874⟧
⟦iban:SE45 5000 0000 0583 9825 7466⟧
⟦iban:MT84 MALT 0110 0001 2345 MTLC AST0 01S⟧
"""

MIXED = r"""
Hi Tom, my new number is ⟦phone:(503) 555-0146⟧ and my mail ⟦email:tom.b@hey.com⟧.
Please ring ⟦phone:01632 960983⟧ after six.
Kundenservice: ⟦phone:+49 89 1234567⟧ (Mo-Fr)
Sie erreichen uns unter ⟦phone:030/1234567⟧.
Numéro vert ⟦phone:0 800 123 456⟧
Rezeption ⟦phone:+43 1 515 820⟧
Hotel, ⟦phone:+39 06 6982⟧ Roma
Llámame al ⟦phone:+34 612 345 678⟧
Ligue ⟦phone:+351 21 123 4567⟧
Ring mig på ⟦phone:070-174 06 58⟧
Zadzwoń: tel. ⟦phone:22 123 45 67⟧
Sydney office ⟦phone:(02) 9876 5432⟧
Cape Town ⟦phone:021 481 7000⟧
Delhi ⟦phone:+91-11-23456789⟧
Tokyo ⟦phone:+81-3-1234-5678⟧
Seoul ⟦phone:02-312-3456⟧ 
phone=⟦phone:650-253-0000⟧
P: ⟦phone:650.253.0000⟧ | F: ⟦phone:650.253.0001⟧
Phone (work): ⟦phone:650 253 0000⟧
cell# ⟦phone:6502530000⟧
My WhatsApp: ⟦phone:+234 802 123 4567⟧
Tel/Fax: ⟦phone:022 123 45 67⟧
from ⟦email:JOHN.DOE@EXAMPLE.COM⟧ on Monday
reply-to=<⟦email:no-reply@lists.kernel.org⟧>
jdoe's address: ⟦email:jdoe AT cs DOT stanford DOT edu⟧
⟦email:s.mueller [at] tu-berlin.de⟧
e-mail: ⟦email:press(at)museum.org⟧
⟦email:lena_1990@hotmail.fr⟧|⟦email:max@t-online.de⟧
writer ⟦email:eve at proton dot me⟧ here
("⟦email:x.y.z@a-b-c.co.in⟧")
E-Mail：⟦email:wang@sina.com.cn⟧
cc ⟦card:5425233430109903⟧ 04/26
amex ⟦card:3742-454554-00126⟧
number ⟦card:6011 6011 6011 6611⟧
charged ⟦card:4917 6100 0000 0000⟧ EUR 5
IBAN ⟦iban:CZ65 0800 0000 1920 0014 5399⟧
iban: ⟦iban:GR16 0110 1250 0000 0001 2300 695⟧.
⟦iban:LU28 0019 4006 4475 0000⟧ (Luxembourg)
⟦iban:SA0380000000608010167519⟧
⟦iban:TR330006100519786457841326⟧;
employee ssn=⟦ssn:521-44-9876⟧;
social security no. ⟦ssn:521 44 9876⟧
User logged in from ⟦ip:41.77.13.250⟧ (NG)
X-Forwarded-For: ⟦ip:203.0.115.5⟧, 10.1.2.3
inet6 ⟦ip:2a01:4f8:c17:b8f::2⟧ scope global
DNS: ⟦ip:9.9.9.9⟧; ⟦ip:149.112.112.112⟧
Received: from mx (mx [⟦ip:212.227.15.15⟧])
export AWS_KEY=⟦secret:AKIAJ7QW2ZRTYPLM4N6V⟧
"secretAccessKey": "⟦secret:h7Gf9sKq2LmN8vB4xZ1cY6tR3wE5pO0iU+aS/dFg⟧"
curl -H "Authorization: token ⟦secret:gho_16C7e42F292c6912E7710c838347Ae178B4a⟧"
login: root password: ⟦secret:toor1234!⟧
API key: ⟦secret:a81bc81b-dead-4e5d-abff-90865d1e13b1⟧
mysql://⟦secret:web:Xy9$kk⟧@10.0.0.4/shop
token=⟦secret:xoxp-1234567890-abcDEF123456⟧
passphrase: "⟦secret:c0rrect-h0rse!⟧"
SECRET_KEY = '⟦secret:django-insecure-8#k2m!x9v@q7z$w4n1b6⟧'
"""

CLEAN = """
Version 1.2.3.4 of the library
v2.0.1.7 was released
requires numpy==1.26.4.0
firmware 9.8.7.6 update
Chrome/91.0.4472.124 Safari/537.36
Product/8.8.8.8 agent
OID 1.3.6.1.4.1.311.21.20
Section 4.3.2.1 describes it
§ 2.3.4.5 of the code
Figure 1.2.3.4
localhost is 127.0.0.1
192.168.0.1 is the router
10.0.0.1/8 and 172.16.5.4
0.0.0.0 means all
documentation 192.0.2.10 and 198.51.100.7 and 203.0.113.9
2001:db8::1 is for documentation
fe80::1%eth0
::1 and ::
00:1A:2B:3C:4D:5E is a MAC
12:34:56 and 23:59:59.999
std::vector<int>::iterator it
Foo::Bar::baz()
a::b
dead::beef
fc00::1 local
ratio 1:2:3:4
999.999.999.999
256.1.1.1
1.2.3
01.02.2003
3.14.15.92.65
ISBN 978-3-16-148410-0
ISBN 0-306-40615-2
ISBN-13: 9780306406157
ISSN 2049-3630
DOI 10.1000/xyz123
doi:10.1093/nar/gkab1038
arXiv:2101.00001v2
PMID 12345678
2021-03-04 12:30:45
2021-03-04T12:30:45.123456Z
04/03/2021 - 05/03/2021
03.04.2021 12:00
1990-2000
2019-2020-2021
1914-1918, 1939-1945
born 12-05-1987 in Ulm
20210304123045
1616161616
1616161616123
timestamp 1616161616123456
Order #123456789
order number 1234567890
Invoice 2021-000123456
Invoice no. 123-456-789
Tracking 1Z999AA10123456784
Tracking 9400110200881234567890
serial 0123456789AB
Ticket 555123456
part 12345-67890-12
SKU 4006381333931
EAN 4006381333931
UPC 036000291452
Case No. 21-1234567
CVE-2021-44228
RFC 2822 and RFC 5322
US Patent 7,123,456
US 7,123,456 B2
$1,234,567.89
1,234,567 people
1 234 567 890 euros
1.234.567,89 EUR
£12 345 678
3.14159265358979323846
2.718281828459045
6.02214076e23
299792458 m/s
0x7fff5fbff8c0
0xDEADBEEFCAFE
d41d8cd98f00b204e9800998ecf8427e
da39a3ee5e6b4b0d3255bfef95601890afd80709
sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
550e8400-e29b-41d4-a716-446655440000
commit 6f28f1d3f4f843eaea775e5dc515bff33c0d9fe4
40.7128, -74.0060
40.712776,-74.005974
51°30'26"N 0°7'39"W
12345-6789
90210-1234
10115 Berlin
SW1A 1AA
1+2+3+4+5+6+7
1234567 + 7654321
100 200 300 400 500
1 2 3 4 5 6 7 8 9 10 11 12
2, 3, 5, 7, 11, 13, 17, 19
0.1 0.2 0.3 0.4 0.5 0.6
1e-5 1e-6 1e-7 1234567
3-2, 4-1, 0-0, 2-2
6-4 6-3 7-6
24-7 support
9-11
1080p 720p 4096x2160
1920x1080
4111 1111 1111 1112
4111111111111112
1234 5678 9012 3456
1234567812345678
0000 0000 0000 0000
1111 1111 1111 1111
5555 5555 5555 5555
3782 822463 10006
9999-9999-9999-9999
4012 4013 4014 4015
2011 2012 2013 2014
account 12345678901234
DE89 3704 0044 0532 0130 01
DE00 0000 0000 0000 0000 00
GB29NWBK60161331926818
AB12 3456 7890 1234
FR2021 report 123456
US12345678901234567890
000-12-3456
666-12-3456
987-65-4321
123-00-4567
123-45-0000
123-45-67890
1234-56-7890
123-45-678
555-12
12-34-5678
@app.route("/users")
@property
lodash@4.17.21
vue@next
icon@2x.png
logo@3x.jpg
git@github.com:owner/repo.git
git@gitlab.com/owner/repo
user@localhost
A @ B.T
y = x@w.weight
C = A@B
self.a@self.b.c
5 apples @ $1.00
Lakers @ Celtics
meet @ 5pm
@alice and @bob
@user_name on Twitter
look at the dot product
arrive at noon
at the dot com boom
find us at example dot com
shop at amazon.com
visit us at example.com
he works at google dot com
points at each dot of com
(a) first (b) second
[at] the end
f(a).com
a@b
foo@bar@baz
%40 of people
email me
name@
@host.com
p@ssw0rd
w@rd.zzzz
password: required
password = None
password = os.environ["PASSWORD"]
password=your_password
password: ********
password: <password>
password = getpass()
password=${PASSWORD}
password = "changeme"
password: string
password is required
forgot password? click
Enter your password:
The password must be at least 8 characters
the secret is out
secret: nothing
token: str
token = next(tokens)
token = self.tokenizer.decode(ids)
max_tokens: 1024
tokens = 123456789
num_tokens=2048
token_ids = [1, 2, 3]
api_key = "YOUR_API_KEY"
api_key: str = Field(...)
api_key=os.getenv("API_KEY")
access_key = config.access_key
primary_key=True
foreign key: user_id
public_key = load_key(path)
key: value
keyboard: QWERTY
"key": "some.translation.key"
private_key_path: /etc/ssl/private/key.pem
-----BEGIN PUBLIC KEY-----
-----BEGIN CERTIFICATE-----
PRIVATE KEY
sk-learn is a library
sk-spinner sk-circle-fade sk-chase-dot
risk-based-approach-to-management-of-things
ask-me-anything-about-this-long-title-here
hf_hub_download
ghp_short
AKIA
xoxo
eyJust a word.
the bearer of bad news
Bearer authentication
basic understanding
basic authentication-required-for-this
https://example.com/a/b
https://example.com:8080/path@v1
https://medium.com/@user/story
http://user@host/path
ssh://git@host/repo
call 911
call 112 now
dial 1 for sales
call me at 5
call 100 times
phone 12
the phone has 128 GB and 4000 mAh
iPhone 12 Pro Max 256
telephone
mobile 5G networks in 2021
fax machine 1990
text 2 lines
page 123-125
pp. 1234-1245
chapters 10-20-30
lot 12-345-678
no. 12345678
id: 123456789
ID 0012345678
user_id=1234567890
uid 1000 gid 1000
port 8080
PIN 1234
room 101-202
items (1234567)
f(1234567890)
print(2125550123)
x = 2125550123
a[1234567]
range(1000000, 2000000)
2**31-1 = 2147483647
4294967296
9007199254740993
18446744073709551615
-1234567890
+1
+100
+1234567
+12
C++11
(2021)
(1234) 5678
(12) 34
(123)
[12345678]
1-2-3-4-5-6-7-8
12-12-12-12
100-200-3000
123-456-7890 is no valid area code
000-000-0000
111-111-1111
512/256/1024
1/2/3/4/5/6/7
192.168.100.200:8080
12.5 kg 13.5 kg 14.5 kg
23 45 67 89 12
$212-555-0123
ABC-212-555-0123-X
data-1234-5678-9012
1.000.000.000
10.000.000
2147483648 bytes
8601:2004
13:45-14:45
9:00-17:00 Mo-Fr
08:00 - 18:00
Mon 10-12, Tue 14-16
A4 210 x 297 mm
1200 1300 1400 1500
0 0 0 0 0 0 0 0 0 0
0.0.0
00000000000
123456789012345678901234567890
12345678901234567890
GET /api/v1/users/12345678/posts/87654321
id=5f3a9c1b2d4e6f708192a3b4
#1234567
#A1B2C3
rgb(123, 123, 123)
rgba(12,34,56,0.78)
matrix(1, 0, 0, 1, 10, 20)
M 10 20 L 30 40 L 50 60 Z
U+1F600 U+1F601
\\u0041\\u0042
&#8217;&#8220;
%20%20%20
QWxhZGRpbjpvcGVuIHNlc2FtZQ==
lorem ipsum dolor sit amet
The 1980s and 1990s
Windows 10.0.17763.1
SQL Server 2019 15.0.2000.5
gcc 4.8.5 20150623
Linux 5.4.0-42-generic
python-3.11.7-amd64
Ubuntu 20.04.1 LTS
HTTP/1.1 200 OK
Content-Length: 12345678
ETag: "5d8c72a5edda8d6a"
2e3 4e5 6e7
p < 0.0001
n = 1234567
95% CI 1.23-4.56
t(1234) = 5.67
Genesis 1:1-2:3
Psalm 119:105
ASIN B07XJ8C8F5
VIN 1HGCM82633A004352
flight LH1234
bus 100, 200, 300
height 1,234.56 m
1 000 000
1'000'000
1_000_000_000
area 51
route 66
apollo 11
section 8(a)(1)
vol. 12, no. 3, pp. 123-145, 2001
NCT01234567
chr1:12345678-12345999
rs123456789
GSE123456
HGNC:12345
P12345
ENSG00000139618
NM_000059.4
EC 3.4.21.4
CAS 7732-18-5
CAS 50-00-0
1234-5678-90
0 1 2 3 4 5 6 7 8 9
0123456789
9876543210
The meeting is on 2024-05-06 at 10:30, room 12-034.
Sales rose from 1,204,555 to 2,340,112 in 2019-2020.
See Smith et al. 2003, 45(3): 1234-1250.
Mass 1.67262192369e-27 kg
The population was 12 345 678 in 1999.
Model no. WRX-555-0100-B
MySQL 8.0.32.1 released
Update to iOS 16.1.2.3 build
Scores: 21-19 18-21 21-17
Bible: John 3:16-18
Lat/Lon 52.520008 13.404954
ratio=0.123456789012
Hex color #11223344
UUID a81bc81b-dead-4e5d-abff-90865d1e13b1
md5 9e107d9d372bb6826bd81d3542a419d6
The key is to be patient
token ring networks
password strength: medium
Password: forgot?
secret ingredient: butter2020
PASSWORD_MIN_LENGTH = 8
password_hash = bcrypt.hashpw(pw)
"token": "<YOUR TOKEN HERE>"
auth_token: ${{ secrets.GITHUB_TOKEN }}
set_password("abc")
email@
@media (max-width: 600px)
user@{host}
pip install foo@1.2
talk @ 3 p.m. tomorrow
we stayed at hotel.com rates
the dots at the end dot
1 at a time
ISBN 3-540-63293-X, 9783540632931
barcode 5901234123457
Flight 4111 to gate 22
4000 1234 5678 9018 not luhn
page 4111 1111
6543 2109 8765 4321
GB82 WEST 1234 5698 7654 33
XX12 3456 7890 1234 5678
Section 12-34-5678 of the statute
00-11-22-33-44-55
2:1 3:2 4:3 5:4
fe:ed:fa:ce:00:01
namespace a::b::c { }
time 12:34:56:78
abcd:ef is hex
Product 0800-1234-A
(2020) 12345678
(1990-1995) 1996
$ 650-253-0000.00
2024/12/31 23:59
30.06.2020 - 02.07.2020
12.345.678-9
0.0254 0.3048 0.9144
10 20 30 40 50 60 70 80
09 10 11 12 13 14
007 008 009 010 011
call(1234567890)
tel aviv 1948
phone book 1234
cell 12 of row 34567
fax: none
1-1-1-1-1-1-1-1-1-1
"""


def luhn_completed(prefix: str) -> str:
    """Return the digits with a check digit, found by trial."""
    for digit in "0123456789":
        total = 0
        for place, character in enumerate(reversed(prefix + digit)):
            value = int(character) * (1 + place % 2)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return prefix + digit
    raise AssertionError


def generated(seed: int) -> list[str]:
    """Return marked texts: random cards, IBANs and e-mail addresses, and the example phone numbers of 45 countries."""
    import phonenumbers

    draw = random.Random(seed)
    texts = []
    cards = (
        ("4", 16),
        ("51", 16),
        ("55", 16),
        ("2221", 16),
        ("34", 15),
        ("37", 15),
        ("6011", 16),
        ("65", 16),
        ("3528", 16),
        ("36", 14),
    )
    for prefix, length in cards * 4:
        digits = luhn_completed(prefix + "".join(draw.choices(string.digits, k=length - len(prefix) - 1)))
        sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[length]
        at = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        said = draw.choice(["", " ", "-", " - ", ".", "\u00a0"]).join(digits[a:b] for a, b in zip(at, at[1:]))
        texts.append(f"He paid with {draw.choice(['card', 'no.', 'number'])} ⟦card:{said}⟧ in May.")
    for country, length in (("DE", 22), ("FR", 27), ("NL", 18), ("PT", 25), ("GR", 27), ("FI", 18), ("CZ", 24), ("HU", 28)) * 4:
        letters = "ABNA" if country == "NL" else ""
        account = letters + "".join(draw.choices(string.digits, k=length - 4 - len(letters)))
        number = int("".join(str(int(c, 36)) for c in account + country + "00"))
        said = f"{country}{98 - number % 97:02d}{account}"
        if draw.random() < 0.5:
            said = " ".join(said[i : i + 4] for i in range(0, length, 4))
        texts.append(f"Pay to ⟦iban:{said}⟧ today.")
    names = ("anna", "b.meier", "chen_li", "d-king", "eva99", "f.o.o", "g+tag")
    hosts = ("gmail.com", "mail.ru", "uni-ulm.de", "corp.co.jp", "a.b.c.org", "web.de", "site.info", "x-y.dev")
    shapes = ("{}@{}", "{} (at) {}", "{}[at]{}", "{} @ {}", "{}@\u200b{}")
    for n in range(60):
        said = draw.choice(shapes).format(draw.choice(names), draw.choice(hosts))
        if n % 4 == 0:
            said = said.replace("@", draw.choice([" at ", " AT "])).replace(".", draw.choice([" dot ", "[dot]"]))
            if " at " in said.lower() and "  " in said:
                said = " ".join(said.split())
        texts.append(f"Write to ⟦email:{said}⟧, please.")
    regions = (
        "US CA GB IE AU NZ DE AT CH FR BE NL LU ES PT IT GR SE NO DK FI PL CZ SK HU RO BG UA RU TR IL AE IN PK BD CN "
        "JP KR TW SG TH VN BR MX ZA"
    ).split()
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    for region in regions:
        for kind in kinds:
            number = phonenumbers.example_number_for_type(region, kind)
            form = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
            texts.append(f"We are open until five, ⟦phone:{form}⟧ or by mail.")
            form = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
            texts.append(f"{draw.choice(['Tel.', 'Phone:', 'Fax', 'Mobile:'])} ⟦phone:{form}⟧")
    return texts


def positives(seed: int = 0) -> list[str]:
    """Return all marked texts."""
    written = []
    for block in (EMAILS, IPS, CARDS, SSNS, PHONES, SECRETS, IBANS, MIXED):
        whole, depth = "", 0
        for line in block.strip("\n").split("\n"):  # a marked span may go over lines
            whole += ("\n" if depth else "") + line
            depth = whole.count("⟦") - whole.count("⟧")
            if not depth:
                written.append(whole)
                whole = ""
    return written + generated(seed)


def negatives() -> list[str]:
    """Return the texts without personal data."""
    return [line for line in CLEAN.strip("\n").split("\n")]
