"""Writes office documents, PDFs, pictures, sound, databases and archives into a folder."""
import bz2, gzip, io, lzma, os, random, sqlite3, struct, sys, tarfile, wave, zipfile, zlib

folder = sys.argv[1]
random.seed(7)
WORDS = ("account invoice attached please review macro update security the of and to in "
         "quarterly figures delivery contract password reset document enable content").split()


def text(count):
    return " ".join(random.choice(WORDS) for _ in range(count))


def write(name, data):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def office(kind, number):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<?xml version='1.0'?><Types>%s</Types>" % kind)
        archive.writestr("%s/document.xml" % kind, "<w:document>%s</w:document>" % text(40 * number + 20))
        archive.writestr("%s/media/image1.bin" % kind, random.randbytes(100 * number))
    write("office%d.%s" % (number, {"word": "docx", "xl": "xlsx", "ppt": "pptx"}[kind]), out.getvalue())


def pdf(number):
    stream = zlib.compress(("BT /F1 12 Tf (%s) Tj ET" % text(30 * number + 5)).encode())
    parts = [b"%PDF-1.7\n", b"1 0 obj << /Type /Catalog /Pages 2 0 R /OpenAction 3 0 R >> endobj\n",
             b"3 0 obj << /S /JavaScript /JS (app.alert(1)) >> endobj\n" if number % 5 == 0 else b"",
             b"4 0 obj << /Filter /FlateDecode /Length %d >> stream\n" % len(stream), stream,
             b"\nendstream endobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"]
    write("paper%d.pdf" % number, b"".join(parts))


def png(number):
    side = 8 + number
    rows = b"".join(b"\0" + random.randbytes(3 * side) for _ in range(side))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    write("picture%d.png" % number, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
          + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def sound(number):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(random.randbytes(200 * (number + 1)))
    write("sound%d.wav" % number, out.getvalue())


def database(number):
    path = os.path.join(folder, "records%d.sqlite" % number)
    with sqlite3.connect(path) as base:
        base.execute("create table t (id integer primary key, body text, data blob)")
        rows = ((text(random.randrange(30)), random.randbytes(random.randrange(90))) for _ in range(20 * number + 3))
        base.executemany("insert into t (body, data) values (?, ?)", rows)


def archives(number):
    data = text(100 * number + 10).encode()
    write("notes%d.txt" % number, data)
    write("notes%d.gz" % number, gzip.compress(data))
    write("notes%d.bz2" % number, bz2.compress(data))
    write("notes%d.xz" % number, lzma.compress(data))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if number % 2 else "w") as archive:
        for member in range(3):
            info = tarfile.TarInfo("member%d" % member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    write("bundle%d.tar" % number, out.getvalue())
    lines = ("2026-11-24T10:%02d:%02d host daemon[%d]: %s\n" % (n // 60 % 60, n % 60, n, text(8)) for n in range(50 * number))
    write("daemon%d.log" % number, "".join(lines).encode())


for n in range(60):
    for each in ("word", "xl", "ppt"):
        office(each, n)
    pdf(n)
    png(n)
    sound(n)
    archives(n)
    if n % 3 == 0:
        database(n)
