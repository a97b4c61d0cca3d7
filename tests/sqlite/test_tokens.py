"""Release by token, where the token and the call do not fit each other."""


def test_a_slot_is_not_released_as_a_lock(make_db, server):
    """A server that keeps both in one table would do it, and the holder would not know."""
    holder, other = make_db(server), make_db(server)
    holder.value("SELECT dflock_sem_lock('s', 2)")
    holder.value("SELECT dflock_lock('l')")
    for name, release in (("s", "dflock_release"), ("l", "dflock_sem_release")):
        token = holder.value("SELECT dflock_token(?)", name)
        assert holder.value(f"SELECT {release}(?, ?)", name, token) == 0
        assert holder.value("SELECT dflock_assert_held(?, 1)", name) == 1
    assert server.holders("s") == 1 and server.holders("l") == 1


def test_nor_from_another_connection_of_the_process(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_sem_lock('s', 2)")
        token = a.value("SELECT dflock_token('s')")
        print(b.value("SELECT dflock_release('s', ?)", token), a.value("SELECT dflock_assert_held('s', 1)"))
        print(b.value("SELECT dflock_sem_release('s', ?)", token), a.value("SELECT dflock_is_held('s')"))
    """, servers=server)
    assert lines == ["0 1", "1 0"]


def test_an_unknown_token_is_the_servers_to_judge(db):
    """Without waiting for its answer nobody could say true."""
    db.value("SELECT dflock_config('release_wait', 'off')")
    assert db.value("SELECT dflock_release('k', ?)", "0" * 32) == 0
    assert db.value("SELECT dflock_sem_release('k', ?)", "0" * 32) == 0
