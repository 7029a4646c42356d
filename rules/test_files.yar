// The strings of these rules are written in hexadecimal, so that this file is not what it looks
// for.

rule EICAR_Test_File
{
    meta:
        description = "The EICAR anti-malware test file: the 68 bytes at the start, then nothing but white space, at most 128 bytes in all. A text that mentions it is no test file."
        reference = "https://www.eicar.org/download-anti-malware-testfile/"
    strings:
        $eicar = {
            58 35 4F 21 50 25 40 41 50 5B 34 5C 50 5A 58 35 34 28 50 5E 29 37 43 43 29 37 7D 24 45 49 43 41
            52 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 56 49 52 55 53 2D 54 45 53 54 2D 46 49 4C 45 21 24
            48 2B 48 2A
        }
    condition:
        filesize >= 68 and filesize <= 128 and $eicar at 0 and
        for all i in (0..127) : (
            i < 68 or i >= filesize or
            uint8(i) == 0x20 or uint8(i) == 0x09 or uint8(i) == 0x0A or uint8(i) == 0x0D or
            uint8(i) == 0x1A
        )
}

rule GTUBE_Test_Mail
{
    meta:
        description = "The generic test for unsolicited bulk email, on a line of its own."
        reference = "https://spamassassin.apache.org/gtube/"
    strings:
        $gtube = {
            58 4A 53 2A 43 34 4A 44 42 51 41 44 4E 31 2E 4E 53 42 4E 33 2A 32 49 44 4E 45 4E 2A 47 54 55 42
            45 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 2D 55 42 45 2D 54 45 53 54 2D 45 4D 41 49 4C 2A 43
            2E 33 34 58
        }
        $line = {
            0A
            58 4A 53 2A 43 34 4A 44 42 51 41 44 4E 31 2E 4E 53 42 4E 33 2A 32 49 44 4E 45 4E 2A 47 54 55 42
            45 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 2D 55 42 45 2D 54 45 53 54 2D 45 4D 41 49 4C 2A 43
            2E 33 34 58
            (0A | 0D)
        }
    condition:
        $line or
        ($gtube at 0 and (filesize == 68 or uint8(68) == 0x0A or uint8(68) == 0x0D)) or
        (filesize > 68 and $gtube at filesize - 68 and uint8(filesize - 69) == 0x0A)
}

rule Lazaret_Test_File
{
    meta:
        description = "A harmless string that Lazaret's tests and demonstrations plant anywhere in a file."
    strings:
        $planted = {
            4C 41 5A 41 52 45 54 21 54 45 53 54 2D 53 54 52 49 4E 47 21 36 43 35 46 31 45 30 42 2D 32 44 37
            41 2D 34 45 31 42 2D 39 43 35 33 2D 4E 4F 54 2D 4D 41 4C 57 41 52 45 21
        }
    condition:
        $planted
}
